"""Every stage submitted to a cluster of several nodes with token authentication, and a node lost in each.

    python -m tests.campaigns.clusters [--work FOLDER]

The cluster is made of raylets on this machine: a head without CPUs and two nodes of one. Jobs are sent with `ray job
submit` to the head, with the token and without it. In each stage a node vanishes at once, with all its processes, when
some of the stage's work is done, and another one comes.
"""

import argparse
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.campaigns.accounts import Account
from tests.support.data import PCAM_COHORT
from tests.support.jobs import ROOT
from tests.support.ports import free_port

NODES = 2
STAGE_S = 600.0
AGENT_S = 120.0
NODE_BACK_S = 3.0


@dataclass
class Local:
    """A cluster of raylets on this machine."""

    cluster: Cluster
    nodes: list[Any]
    address: str
    """Of the head's job server."""
    work: Path
    added: int = 0

    def add(self) -> None:
        """Let a node come, with a folder of its own: nodes that share one overwrite each other's working folders."""
        self.added += 1
        folder = self.work / f"n{self.added}"
        node = self.cluster.add_node(num_cpus=1, dashboard_agent_listen_port=free_port(), temp_dir=str(folder))
        self.nodes.append(node)

    def lose(self) -> None:
        """Take the oldest node away at once, with all its processes."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)


@contextmanager
def local_cluster(work: Path) -> Iterator[Local]:
    """Start the cluster, and end it."""
    port = free_port()
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port,
            "dashboard_agent_listen_port": free_port()}  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    local = Local(cluster, [], f"http://127.0.0.1:{port}", work)
    try:
        for _ in range(NODES):
            local.add()
        yield local
    finally:
        cluster.shutdown()


def start(local: Local, environment: dict[str, str], out: Path, job: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Submit a job and return the waiting client; what it says goes into a file."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", local.address,
               "--working-dir", ".", "--", "python", f"jobs/{job}.py", *arguments]  # fmt: skip
    with out.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait_for_agent(local: Local, environment: dict[str, str], work: Path) -> None:
    """Wait until the head takes jobs."""
    deadline = time.monotonic() + AGENT_S
    while time.monotonic() < deadline:
        out = work / "first.log"
        if start(local, environment, out, "tile", "--help").wait() == 0:
            return
        time.sleep(2)
    sys.exit(f"the head takes no jobs:\n{out.read_text()[-2000:]}")


@dataclass
class Stage:
    """A job, what it is given, and when a node is taken from it."""

    job: str
    given: list[str]
    is_time: Callable[[], bool]


def run_stage(local: Local, out: Path, stage: Stage) -> tuple[float, bool, dict[str, Any] | None]:
    """Run a stage and take a node away in the middle; return its seconds, whether one was lost, and its answer."""
    began, was_lost = time.monotonic(), False
    client = start(local, dict(os.environ), out, stage.job, *stage.given)
    while client.poll() is None:
        if time.monotonic() - began > STAGE_S:
            client.kill()
            client.wait()
            return STAGE_S, was_lost, None
        if not was_lost and stage.is_time():
            local.lose()
            was_lost = True
            time.sleep(NODE_BACK_S)
            local.add()
        time.sleep(0.1)
    lines = [line for line in out.read_text(errors="replace").splitlines() if line.startswith('{"job"')]
    answer = json.loads(lines[-1]) if lines and client.returncode == 0 else None
    return time.monotonic() - began, was_lost, answer


def campaign(local: Local, work: Path, data: Path, account: Account) -> None:
    """Refuse strangers, then run every stage with a node lost in it."""
    root, environment = work / "store", dict(os.environ)
    wait_for_agent(local, environment, work)
    strangers = {"without a token": {**environment, "RAY_AUTH_MODE": "disabled"} | {"RAY_AUTH_TOKEN": ""},
                 "with another token": {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}}  # fmt: skip
    for who, theirs in strangers.items():
        out = work / "stranger.log"
        code = start(local, theirs, out, "tile", "--help").wait()
        text = out.read_text(errors="replace").lower()
        if code == 0 or not any(word in text for word in ("401", "403", "unauthenticated", "unauthorized", "token")):
            account.fail(f"a job {who} was not refused: exit {code}, {text[-300:]}")
        account.add(f"refused {who}")
    common = [f"cohort.manifest={data / 'manifest.csv'}", f"storage.root={root}", "tiling.patch_px=96",
              "tiling.mpp=0.972", "encoder.name=texture", "tracking.uri=none"]  # fmt: skip

    def count(pattern: str) -> int:
        return sum(1 for _ in root.glob(pattern))

    stages = [
        Stage("tile", common, lambda: count("patches/*/*/part-*") >= 8),
        Stage("embed", common, lambda: count("embeddings/*/*/part-*") >= 8),
        Stage("train", [*common, "training.run=campaign", "training.num_workers=2", "training.use_gpu=false"],
              lambda: count("checkpoints/campaign/epoch-0000[3-9].safetensors") >= 1),
        Stage("tune", [*common, "search.run=campaign-search", "search.trials=6", "search.repeats=0",
                       "training.epochs=12"],
              lambda: count("searches/campaign-search/trials/*.json") >= 3),
    ]  # fmt: skip
    for stage in stages:
        job, out = stage.job, work / f"{stage.job}.log"
        seconds, was_lost, answer = run_stage(local, out, stage)
        account.measured[f"{job}, s"] = seconds
        account.add("stages with a node lost", int(was_lost))
        print(f"{job}: {seconds:.0f} s, {'a node lost' if was_lost else 'NO NODE LOST'}, "
              f"{'finished' if answer else 'FAILED'}", flush=True)  # fmt: skip
        if answer is None or not was_lost:
            account.fail(f"{job}: {'no node was lost' if answer else 'it did not finish'}; see {out}")
        elif job in {"tile", "embed"} and set(answer["slides"]) != {"ok"}:
            account.fail(f"{job}: {answer['slides']}")
        elif job == "train" and answer["epochs"] != 40:
            account.fail(f"train: {answer['epochs']} epochs")
        elif job == "tune" and (sum(answer["trials"].values()) != 6 or "failed" in answer["trials"]):
            account.fail(f"tune: {answer['trials']}")


def main() -> int:
    """Run the campaign and return the exit code."""
    if "RAY_AUTH_TOKEN" not in os.environ:  # Ray reads it when it is imported: begin again with one
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        module = [sys.executable, "-m", "tests.campaigns.clusters", *sys.argv[1:]]
        os.execve(sys.executable, module, os.environ | mine | {"PATH": path, "OMP_NUM_THREADS": "1"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--work", type=Path, default=Path("/tmp"), help="where the work folder is made")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="clusters-", dir=options.work))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Ray {ray.__version__}")
    account, began = Account("clusters"), time.monotonic()
    with local_cluster(work) as local:
        campaign(local, work, options.data, account)
    account.seconds = time.monotonic() - began
    print(account.line())
    if not account.has_passed:
        print(f"what failed is in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
