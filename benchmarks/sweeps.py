"""What a search costs, and whether it survives its driver.

    python -m benchmarks.sweeps cost   what a trial costs beside the same training in a loop, and beside `train` jobs
    python -m benchmarks.sweeps whole  a search of 24 trials with ASHA and its comparison, timed
    python -m benchmarks.sweeps kill   the same, its driver killed half way, and run again

On `pcam_cohort`, tiled and embedded once under --root before anything is timed. Jobs run as users run them: processes
that start their own Ray on all cores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlflow
import torch

from benchmarks.inprocess import train_here
from benchmarks.pcambags import load_cohort
from distmil.config.loading import build_config
from tests.support.data import PCAM_COHORT
from tests.support.jobs import ROOT, command, kill_job_when

TRIALS = 24
OVER = {"finished", "stopped"}


def arguments(options: argparse.Namespace, run: str, *more: str) -> list[str]:
    """Return the overrides of a job on the cohort."""
    return [
        f"cohort.manifest={options.data / 'manifest.csv'}", f"storage.root={options.root}", "tiling.patch_px=96",
        "tiling.mpp=0.972", f"search.run={run}", f"search.trials={options.trials}", *more,
    ]  # fmt: skip


def run_job(job: str, given: list[str]) -> tuple[float, dict[str, Any]]:
    """Run a job and return its seconds and its answer."""
    started = time.perf_counter()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command(job, *given), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def records(options: argparse.Namespace, run: str) -> dict[str, dict[str, Any]]:
    """Return a search's trial records by key."""
    folder = options.root / "searches" / run / "trials"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def _train_plainly(given: tuple[Path, Path, int]) -> float:
    """Train the default network in a loop and return its seconds."""
    data, root, seed = given
    torch.set_num_threads(1)
    bags = load_cohort(data, root).train
    config = build_config({"training": {"seed": seed}})
    torch.manual_seed(seed)
    started = time.perf_counter()
    train_here(bags, config, embedding_dim=bags[0].source.take(slice(0, 1)).shape[1])
    return time.perf_counter() - started


def cost(options: argparse.Namespace) -> None:
    """Print what a trial costs beside the loop alone, and beside a `train` job of its own."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:  # as many at once as trials
        loop = statistics.mean(pool.map(_train_plainly, [(options.data, options.root, i) for i in range(2 * cores)]))
    name = f"cost-{time.time_ns()}"
    given = arguments(options, name, "search.stopping=none", "search.repeats=0", "search.trials=8")
    wall, _ = run_job("tune", given)
    seconds = [record["seconds"] for record in records(options, name).values()]
    jobs = [
        run_job("train", arguments(options, name, f"training.run={name}-{i}", f"training.seed={i}"))[0]
        for i in range(options.jobs)
    ]
    trial = statistics.mean(seconds)
    print(f"the loop alone, {cores} at once: {loop:.1f} s; a trial: {trial:.1f} s ({trial - loop:+.1f} s)")
    print(f"{len(seconds)} trials, {cores} at once, with Ray's start and the report: {wall:.0f} s, "
          f"{wall * cores / len(seconds):.1f} core seconds each")  # fmt: skip
    print(f"a `train` job: {statistics.mean(jobs):.1f} s ({', '.join(f'{job:.1f}' for job in jobs)})")
    print(f"{TRIALS} `train` jobs one after the other: {TRIALS * statistics.mean(jobs):.0f} s (from these {len(jobs)})")


def whole(options: argparse.Namespace) -> None:
    """Print how long a search takes, trials apart from the comparison."""
    name = f"whole-{time.time_ns()}"
    trials, _ = run_job("tune", arguments(options, name, "search.repeats=0"))
    rest, answer = run_job("tune", arguments(options, name))
    found = [record for record in records(options, name).values() if not record["is_repeat"]]
    epochs = sum(len(record["rows"]) for record in found)
    print(f"{len(found)} trials, {epochs} epochs of {40 * len(found)}: {trials:.0f} s; the comparison: {rest:.0f} s")
    print(f"{answer['trials']}; {answer['verdict']}\nreport: {answer['folder']}/report.md")


def kill(options: argparse.Namespace) -> None:
    """Kill the driver when half of the trials are over, run the same again, and say what became of them."""
    name = f"kill-{time.time_ns()}"
    given = arguments(options, name)

    def over() -> dict[str, dict[str, Any]]:
        return {key: record for key, record in records(options, name).items() if record["status"] in OVER}

    kill_job_when(options.root, lambda: len(over()) >= options.trials // 2, "tune", *given)
    before, started = over(), len(records(options, name))
    seconds, answer = run_job("tune", given)
    after = records(options, name)
    client = mlflow.MlflowClient(answer["tracking"]["uri"])
    parent = answer["tracking"]["run_id"]
    runs = client.search_runs([client.get_run(parent).info.experiment_id], max_results=5000)
    own = [r for r in runs if r.info.run_id == parent or r.data.tags.get("mlflow.parentRunId") == parent]
    still_open = sum(r.info.status == "RUNNING" for r in own)
    trials = [record for record in after.values() if not record["is_repeat"]]
    same = all(after[key] == record for key, record in before.items())
    print(f"killed with {len(before)} trials over and {started - len(before)} running; run again: {seconds:.0f} s")
    print(f"{len(trials)} trials, {sum(r['status'] in OVER for r in trials)} over, those over before "
          f"{'untouched' if same else 'TRAINED AGAIN'}; {len(own)} runs in MLflow, {still_open} open")  # fmt: skip
    if not same or still_open or len(trials) != options.trials:
        sys.exit("the search lost something")


def main() -> None:
    """Run one of the measurements."""
    kinds = {"cost": cost, "whole": whole, "kill": kill}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--root", type=Path, required=True, help="store to use")
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--jobs", type=int, default=3, help="`train` jobs to time")
    options = parser.parse_args()
    options.root = options.root.resolve()
    load_cohort(options.data, options.root)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    kinds[options.kind](options)


if __name__ == "__main__":
    main()
