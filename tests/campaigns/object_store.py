"""The jobs on an object store beside the same jobs on disk: same output, and what faults of the server cost.

    python -m tests.campaigns.object_store [--slides N] [--epochs N] [--share S] [--work DIR] [--out JSON]

Run it from the project's folder. A small synthetic cohort is tiled, embedded, trained on, evaluated, predicted and
searched for better settings three times: on disk, on an S3 server of this machine (moto's), and on the same server
behind a proxy that meets a share of all requests with a fault: a 500, a 503, an answer lost or cut off after the work
was done, or a late one. Every committed file of each end is compared byte for byte with the disk's, and of the search
all that is no time, path or picture. The server is a Python process beside the jobs on the same cores, so that its
times are upper bounds, not those of a real store.

The exit code is 1 if a job failed or an output differs.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from distmil.config.loading import parse_yaml
from distmil.demo.cohort import make_cohort
from distmil.storage.object_store import join_uri, open_filesystem
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store
from tests.support.jobs import Done, kill_job_when, run_job, with_quick_encoder
from tests.support.s3_server import FAULTS, S3, s3_server

RUN, SEARCH = "small", "wide"
SMALL = [
    "cohort.val_fraction=0.4",
    "bags.slides_per_step=2",
    "model.feature_dim=16",
    "model.attention_dim=8",
    "model.dropout=0",
    "model.input_dropout=0",
    "tracking.uri=none",
    "training.use_gpu=false",
]
JOBS: dict[str, list[str]] = {
    "tile": [],
    "embed": [],
    "train": [f"training.run={RUN}"],
    "evaluate": [f"prediction.model={RUN}", "prediction.run=evaluated", "prediction.split=val"],
    "predict": ["prediction.run=predicted"],
    "tune": [
        f"search.run={SEARCH}", "search.trials=3", "search.repeats=2", "search.stopping=none", "search.ablations=false",
        "search.metric=loss",  # of equal scores the trial that Ray started first would win
        "search.concurrent=1",  # a process less to start
    ],
}  # fmt: skip
COMPARED = ("patches", "embeddings", "labels", "models", "predictions", "checkpoints")
SLOW_S = 1.0


@dataclass
class Stages:
    """The jobs on one root."""

    root: str
    manifest: Path
    home: Path
    """For what jobs keep outside of the root: copies of far files, what MLflow has."""
    epochs: int = 3
    seconds: dict[str, float] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """Return the root's store."""
        return Store(resolve_root(self.root))

    def arguments(self, job: str) -> list[str]:
        """Return a job's arguments; `predict` takes its bundle by path or URI."""
        trains = job in {"train", "tune"}
        more = [f"training.epochs={self.epochs}"] if trains else []
        if job == "predict":
            more += [f"prediction.model={join_uri(self.root, f'models/{RUN}')}"]
        small = [value for value in SMALL if trains or value.startswith(("cohort", "tracking", "training"))]
        given = [f"cohort.manifest={self.manifest}", f"storage.root={self.root}", *small, *more, *JOBS[job]]
        return with_quick_encoder(job, given)

    def run(self, job: str) -> Done:
        """Run a job to its end. Raises: RuntimeError if it fails."""
        started = time.monotonic()
        done = run_job(self.home, job, *self.arguments(job))
        self.seconds[job] = time.monotonic() - started
        print(f"{self.root.partition('?')[0]}: {job} {self.seconds[job]:.1f} s", flush=True)
        if done.code:
            raise RuntimeError(f"{job} on {self.root} ended in {done.code}:\n{done.err[-3000:]}")
        self.answers[job] = done.answer
        return done

    def run_all(self) -> "Stages":
        """Run every job."""
        for job in JOBS:
            self.run(job)
        return self

    def kill(self, job: str, is_time: Callable[[], bool]) -> None:
        """Kill a job with everything it started as soon as the moment has come."""
        kill_job_when(self.home, is_time, job, *self.arguments(job))

    def files(self) -> dict[str, str]:
        """Return the checksum of every file that is compared."""
        names = [name for name in self.names(COMPARED) if not name.endswith("/owner.json")]  # who made it, and when
        return {name: hashlib.sha256(self.store.read(name)).hexdigest() for name in names}

    def names(self, folders: Sequence[str]) -> list[str]:
        """Return the names of all files in some folders."""
        store = self.store
        filesystem, base = (pafs.LocalFileSystem(), self.root) if store.is_local else open_filesystem(store.root)
        selectors = [pafs.FileSelector(f"{base}/{name}", recursive=True, allow_not_found=True) for name in folders]
        return [
            info.path.removeprefix(base).lstrip("/")
            for selector in selectors
            for info in filesystem.get_file_info(selector)
            if info.type == pafs.FileType.File
        ]

    def searched(self) -> dict[str, Any]:
        """Return what the search came to: trials, tables, report, best values; no times, paths, or order of start."""
        store, folder = self.store, f"searches/{SEARCH}"
        trials = {
            name: store.read_json(f"{folder}/trials/{name}")["values"] for name in store.names(f"{folder}/trials")
        }
        best = parse_yaml(store.read(f"{folder}/best.yaml").decode())
        tables = {name: store.read(f"{folder}/{name}.csv").decode().splitlines() for name in ("trials", "comparison")}
        columns = [{**row, "seconds": ""} for row in csv.DictReader(tables["trials"])]
        report = store.read(f"{folder}/report.md").decode().partition("best trials; all are in")[0]
        return {
            "trials": {name: {**trial, "number": 0, "seconds": 0.0, "mlflow": None} for name, trial in trials.items()},
            "best": best,
            "tables": [columns, tables["comparison"]],
            "report": re.sub(r"\d+ s of work", "", report),
        }


def differences(one: Mapping[str, str], two: Mapping[str, str]) -> list[str]:
    """Return the files that are not the same in both."""
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@contextmanager
def settings_of(s3: S3, home: Path) -> Iterator[None]:
    """Give processes started from here the server, its keys, and a cache of their own."""
    values = {**s3.environment, "DISTMIL_CACHE": str(home / "cache")}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, print the figures, and return the exit code."""
    options = _parser().parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="objectstore-", dir=options.work))
    manifest = make_cohort(work / "cohort", num_slides=options.slides)
    made: dict[str, Stages] = {}
    asked: dict[str, Counter[str]] = {}

    def measure(name: str, root: str) -> None:
        home = work / name.replace(" ", "-")
        home.mkdir()
        made[name] = Stages(root, manifest, home, options.epochs).run_all()

    measure("disk", str(work / "store"))
    with s3_server(work / "server.log", seed=options.seed) as s3, settings_of(s3, work):
        for name, share in (("S3", 0.0), ("S3 with faults", options.share)):
            s3.behaviour.share, s3.behaviour.slow_s = share, SLOW_S
            s3.behaviour.done.clear()
            shutil.rmtree(work / "cache", ignore_errors=True)
            measure(name, f"s3://bucket/{name.replace(' ', '-')}")
            asked[name] = s3.behaviour.done.copy()
            s3.behaviour.share = 0.0
        expected, found = made["disk"].files(), made["disk"].searched()
        wrong = {name: differences(expected, made[name].files()) for name in asked}
        for name in asked:
            wrong[name] += ["searches"] * (made[name].searched() != found)
    for name, counts in asked.items():
        requests = sum(counts.values()) - sum(counts[kind] for kind in FAULTS)
        faults = ", ".join(f"{kind} {counts[kind]}" for kind in FAULTS)
        print(
            f"{name}: {requests} requests, faults: {faults}; {len(expected)} files, different: {wrong[name] or 'none'}"
        )
    if options.out:
        values = {
            "seconds": {name: stages.seconds for name, stages in made.items()},
            "requests": {name: dict(counts) for name, counts in asked.items()},
            "files": len(expected),
            "different": wrong,
        }
        options.out.write_text(json.dumps(values, indent=1) + "\n")
    if any(wrong.values()):
        print(f"what differs is in {work}")
        return 1
    shutil.rmtree(work)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--slides", type=int, default=12, help="of the cohort")
    add("--epochs", type=int, default=5)
    add("--share", type=float, default=0.05, help="of requests that meet a fault")
    add("--seed", type=int, default=0)
    add("--work", type=Path, default=Path("/tmp"), help="where the work folder is made, on a real disk")
    add("--out", type=Path, default=None, help="JSON file for the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
