"""Training under attack: workers killed, nodes lost or drained, checkpoints cut off while they are written.

    python -m tests.campaigns.training_faults [kills|nodes|drains|checkpoints ...] [--count N] [--work DIR] [--out JSON]

Run it from the project's folder. Training is the real one, on a small made cohort and a local Ray.

- kills: kill -9 of a worker at random moments, while the workers start as well as in the middle of epochs, several in
  one run. Every run must end with all its epochs and, byte for byte, with the checkpoint of an unbroken run.
- nodes: a node of a cluster of processes vanishes with its worker, and another one comes. In the second half of the
  rounds the workers are elastic: one must go on, and they grow back to two.
- drains: a node is drained as a spot instance is (``ray drain-node``) and taken away at its deadline. No failure is
  allowed (``training.max_failures=0``), so that a preemption which counts as one is found.
- checkpoints: kill -9 of a process that does nothing but save checkpoints. What is loaded then must be whole, and no
  older than what was said to be saved.

It prints a line per attempt and per campaign; the exit code is 1 if anything went wrong.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.cluster_utils import Cluster

from distmil.bags.bag import BagEntry
from distmil.storage.store import Store
from distmil.training.checkpoints import load_checkpoint, save_checkpoint
from distmil.training.engine import History
from distmil.training.run import new_learner
from distmil.training.run_files import checkpoint_folder
from tests.campaigns.accounts import Account
from tests.campaigns.forking import fork
from tests.campaigns.training_runs import (
    CPUS,
    SPEC,
    Run,
    make_cohort,
    make_config,
    node_pids,
    small_cluster,
    worker_pids,
)

COUNTS = {"kills": 30, "nodes": 5, "drains": 5, "checkpoints": 100}
KILLS_A_RUN = 6
DEADLINE_S = 6


@dataclass
class Bench:
    """What the campaigns work with."""

    store: Store
    entries: list[BagEntry]
    rng: np.random.Generator
    min_workers: int | None
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def note(self, campaign: str, **values: Any) -> None:
        """Note an attempt and say it."""
        self.attempts.append({"campaign": campaign, **values})
        shown = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in values.items())  # fmt: skip
        print(f"{campaign}: {shown}", flush=True)

    def run(self, name: str, *, resize_interval_s: float = Run.resize_interval_s, **training: Any) -> Run:
        """Start a run."""
        return Run(self.store, name, make_config(**training), resize_interval_s).start(self.entries)

    def finish(self, account: Account, run: Run, unbroken: Run | None = None) -> None:
        """Wait for the end of a run and count what is wrong."""
        for text in run.wrong(unbroken):
            account.fail(f"{run.name}: {text}")
        account.add("runs")
        account.add("connected to Ray anew", run.connected_anew)
        account.add("left-over temporary files", sum(".tmp-" in name for name in run.store.names(
            checkpoint_folder(run.name))))  # fmt: skip


def kills(bench: Bench, account: Account, count: int) -> None:
    """Kill -9 workers at random moments; every second while they start."""
    unbroken = bench.run("kills-unbroken")
    bench.finish(account, unbroken)
    made = number = 0
    while made < count and account.has_passed:
        run = bench.run(f"kills-{number}", min_workers=bench.min_workers)
        number += 1
        known: set[int] = set()
        for _ in range(min(KILLS_A_RUN, count - made)):
            killed = _kill_one(bench, run, known, is_early=made % 2 == 1)
            if not killed:
                break
            made += 1
            account.add("kills")
        bench.finish(account, run, unbroken)


def _kill_one(bench: Bench, run: Run, known: set[int], *, is_early: bool) -> bool:
    """Kill one of the next workers and return whether there was one."""
    before = run.epochs

    def fresh() -> list[int]:
        return [pid for pid in worker_pids(os.getpid()) if pid not in known]

    if not run.wait(lambda: bool(fresh())):
        return False
    if not is_early and not run.wait(lambda: run.epochs > before):
        return False
    time.sleep(bench.rng.uniform(0, 6.0 if is_early else 1.0))
    pids = fresh()
    if not pids or not run.is_alive:
        return False
    victim = int(bench.rng.choice(pids))
    epoch = run.epochs
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return False
    known.update(pids)
    bench.note("kills", run=run.name, after_epoch=epoch, moment="start" if epoch == before else "epoch", pid=victim)
    return True


def nodes(bench: Bench, account: Account, count: int) -> None:
    """Take nodes away without a word; the later half from elastic workers."""
    fixed = (count + 1) // 2
    with small_cluster() as (cluster, there):
        unbroken = bench.run("nodes-unbroken", epochs=40)
        bench.finish(account, unbroken)
        run = bench.run("nodes-fixed", epochs=40)
        for _ in range(fixed):
            _lose_node(bench, account, run, cluster, there, is_elastic=False)
        bench.finish(account, run, unbroken)
        epochs = 200 * max(1, count - fixed)
        run = bench.run("nodes-elastic", epochs=epochs, min_workers=1, resize_interval_s=5.0)
        for _ in range(count - fixed):
            _lose_node(bench, account, run, cluster, there, is_elastic=True)
        bench.finish(account, run)


def _lose_node(
    bench: Bench, account: Account, run: Run, cluster: Cluster, there: list[Any], *, is_elastic: bool
) -> None:
    """Remove a node that has a worker, and add another: at once, or when elastic workers have gone on without it."""
    pids = _wait_for_epochs(run, workers=CPUS)
    node = next(node for node in there if node_pids(node))
    started, epoch = time.monotonic(), run.epochs
    cluster.remove_node(node, allow_graceful=False)
    there.remove(node)
    alone_s: float | None = None
    if is_elastic:
        pids |= _wait_for_epochs(run, workers=1, earlier=pids)
        alone_s = time.monotonic() - started
        account.add("gone on with one worker")
    there.append(cluster.add_node(num_cpus=1))
    _wait_for_epochs(run, workers=CPUS, earlier=pids)
    account.add("nodes lost")
    bench.note("nodes", run=run.name, after_epoch=epoch, elastic=is_elastic, one_worker_after_s=alone_s,
               two_workers_after_s=time.monotonic() - started, now_epoch=run.epochs)  # fmt: skip


def _wait_for_epochs(run: Run, *, workers: int, earlier: Iterable[int] = ()) -> set[int]:
    """Wait until so many new workers have trained two epochs, and return their processes.

    Raises:
        RuntimeError: If the run ends before.
    """

    def pids() -> set[int]:
        return set(worker_pids(os.getpid()))

    is_there = run.wait(lambda: len(pids()) == workers and pids().isdisjoint(earlier))
    before, there = run.epochs, pids()
    if not is_there or not run.wait(lambda: run.epochs > before + 1):
        raise RuntimeError(f"{run.name} ended at epoch {run.epochs} before {workers} workers were seen: {run.error}")
    return there


def drains(bench: Bench, account: Account, count: int) -> None:
    """Drain nodes as a spot market does, and take them away at the deadline."""
    with small_cluster() as (cluster, there):
        epochs = 40 * count
        unbroken = bench.run("drains-unbroken", epochs=epochs)
        bench.finish(account, unbroken)
        run = bench.run("drains", epochs=epochs, max_failures=0)
        for _ in range(count):
            _drain_node(bench, account, run, cluster, there)
        bench.finish(account, run, unbroken)


def _drain_node(bench: Bench, account: Account, run: Run, cluster: Cluster, there: list[Any]) -> None:
    pids = _wait_for_epochs(run, workers=CPUS)
    node = next(node for node in there if node_pids(node))
    started, epoch = time.monotonic(), run.epochs
    subprocess.run(
        [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address,
         "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
         "--deadline-remaining-seconds", str(DEADLINE_S)],
        check=True, capture_output=True,
    )  # fmt: skip
    deadline = time.monotonic() + DEADLINE_S
    there.append(cluster.add_node(num_cpus=1))
    time.sleep(max(0.0, deadline - time.monotonic()))
    cluster.remove_node(node, allow_graceful=False)
    there.remove(node)
    _wait_for_epochs(run, workers=CPUS, earlier=pids)
    account.add("nodes drained")
    bench.note("drains", after_epoch=epoch, going_on_after_s=time.monotonic() - started, now_epoch=run.epochs)


def checkpoints(bench: Bench, account: Account, count: int) -> None:
    """Kill a process that saves one checkpoint after the other."""
    torch.set_num_threads(1)  # threads do not outlive a fork
    told = Path(bench.store.root) / "told"
    told.write_bytes(b"")
    for number in range(count):
        child = fork(_save_for_ever, bench.store, told)
        child.wait_begun()
        before, deadline = told.stat().st_size, time.monotonic() + 5
        while number % 5 and told.stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(bench.rng.uniform(0, 0.15))
        child.kill()
        saved = int((told.read_text().split() or ["-1"])[-1])
        loaded, wrong = _load(bench.store, saved)
        account.add("kills")
        account.add("killed between commit and telling", loaded > saved)
        for text in wrong:
            account.fail(f"attempt {number}: {text}")
        bench.note("checkpoints", attempt=number, told_epoch=saved, loaded_epoch=loaded)
    left = sum(".tmp-" in name for name in bench.store.names(checkpoint_folder("saving")))
    account.add("left-over temporary files", left)


def _save_for_ever(store: Store, told: Path) -> None:
    """Save checkpoints whose weights are all the number of their epoch, and tell each that is saved."""
    config = make_config()
    learner = new_learner(config, SPEC, store, device=torch.device("cpu"))
    history = load_checkpoint(store, "saving", learner) or History()
    with told.open("ab", buffering=0) as file:
        while True:
            epoch = len(history.rows)
            _fill(learner.head, epoch)
            is_best = history.add({"loss": 1 / (1 + epoch // 3)}, select_by="loss")
            save_checkpoint(store, "saving", learner, history, is_best=is_best)
            file.write(f"{epoch}\n".encode())


def _fill(head: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(value)


def _load(store: Store, told: int) -> tuple[int, list[str]]:
    """Load the latest and the best checkpoint; return the latest epoch and what is wrong."""
    learner = new_learner(make_config(), SPEC, store, device=torch.device("cpu"))
    wrong, epochs = [], []
    for best in (False, True):
        try:
            history = load_checkpoint(store, "saving", learner, best=best)
        except Exception as error:  # noqa: BLE001 (it is the finding)
            return -1, [f"{'best' if best else 'latest'}: {type(error).__name__}: {error}"]
        epochs.append(len(history.rows) - 1 if history else -1)
        values = {value for p in learner.head.parameters() for value in p.detach().unique().tolist()}
        if history and values != {float(epochs[-1])}:
            wrong.append(f"epoch {epochs[-1]} has the weights of {sorted(values)}")
    if epochs[0] < told:
        wrong.append(f"epoch {told} was told to be saved, epoch {epochs[0]} was loaded")
    return epochs[0], wrong


CAMPAIGNS: dict[str, Callable[[Bench, Account, int], None]] = {
    "kills": kills,
    "nodes": nodes,
    "drains": drains,
    "checkpoints": checkpoints,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaigns and return the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if unknown := set(options.campaigns) - set(CAMPAIGNS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; choose from {', '.join(CAMPAIGNS)}")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="trainingfaults-", dir=options.work))
    store, entries = make_cohort(folder)
    bench = Bench(store, entries, np.random.default_rng(options.seed), options.min_workers)
    accounts = []
    for name in options.campaigns or list(CAMPAIGNS):
        account, started = Account(name), time.monotonic()
        try:
            CAMPAIGNS[name](bench, account, COUNTS[name] if options.count is None else options.count)
        except Exception as error:  # noqa: BLE001 (the other campaigns go on)
            account.fail(f"it was stopped: {type(error).__name__}: {error}")
        account.seconds = time.monotonic() - started
        print(account.line(), flush=True)
        accounts.append(account)
    if options.out:
        values = {"campaigns": {a.name: a.to_json() for a in accounts}, "attempts": bench.attempts}
        options.out.write_text(json.dumps(values, indent=1) + "\n")
    if not all(account.has_passed for account in accounts):
        print(f"what failed is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; default: all")
    add("--count", type=int, default=None, help=f"attempts of each; default {COUNTS}")
    add("--min-workers", type=int, default=None, help="training.min_workers in kills")
    add("--seed", type=int, default=0)
    add("--work", type=Path, default=Path("/tmp"), help="where the work folder is made, on a real disk")
    add("--out", type=Path, default=None, help="JSON file for the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
