"""Runs of training to attack: a small made cohort, a run in a process as a job is one, a cluster of processes.

A run starts a local Ray of its own, or joins the cluster that is there.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.cluster_utils import Cluster
from rich.console import Console as RichConsole

from distmil.bags.bag import BagEntry
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.console import Console
from distmil.encoders.registry import EncoderSpec
from distmil.errors import DistmilError
from distmil.pipeline.cluster import stop_ray
from distmil.pipeline.job import Job
from distmil.pipeline.training import workers as fitting
from distmil.pipeline.training.worker import read_history
from distmil.processes.tree import descendants
from distmil.storage.schemas import embeddings_schema, labels_schema, to_ipc
from distmil.storage.store import Store
from distmil.tracking.tracker import Tracker
from distmil.training.checkpoints import load_checkpoint
from distmil.training.run import new_learner
from distmil.training.run_files import checkpoint_folder, run_file

EMBEDDING, NUM_SLIDES = 128, 16
SPEC = EncoderSpec("texture", "made", EMBEDDING, None)
LIMIT_S = 180.0
CPUS = 2


def make_slide(store: Store, index: int, rng: np.random.Generator) -> BagEntry:
    """Write a slide's embeddings and labels; odd slides are positive, and every fifth is for validation."""
    name, count, label = f"slide-{index:02d}", int(rng.integers(900, 1500)), index % 2
    embedding_NE = rng.normal(size=(count, EMBEDDING))
    label_N = np.zeros(count, np.int8)
    if label:
        label_N[: count // 8] = 1
        embedding_NE[: count // 8, 0] += 2
    x = np.arange(count, dtype=np.int32) * 10
    places = [[name] * count, x, x + 7, np.full(count, 10, np.int32)]
    flat = pa.array(embedding_NE.astype(np.float16).ravel())
    shard = pa.table([*places, pa.FixedSizeListArray.from_arrays(flat, EMBEDDING)], schema=embeddings_schema(EMBEDDING))
    part = store.write_part(f"embeddings/{name}", "part-0.arrow", to_ipc(shard), rows=count)
    labels = pa.table([*places, label_N, label_N.astype(np.float32)], schema=labels_schema(2))
    sink = pa.BufferOutputStream()
    pq.write_table(labels, sink)
    store.write(f"labels/{name}.parquet", sink.getvalue())
    split = "val" if index % 5 == 4 else "train"
    return BagEntry(name, label, split, False, f"embeddings/{name}", (part,), f"labels/{name}.parquet")


def make_cohort(root: Path) -> tuple[Store, list[BagEntry]]:
    """Write a small cohort of embedding bags."""
    store, rng = Store(str(root)), np.random.default_rng(0)
    return store, [make_slide(store, i, rng) for i in range(NUM_SLIDES)]


def make_config(**training: Any) -> Config:
    """Return a small training configuration."""
    values = {"num_workers": 2, "epochs": 12, "use_gpu": False, "max_failures": 1000, "start_timeout_s": 120}
    return build_config(
        {
            "encoder": {"name": "texture"},
            "model": {"feature_dim": 64, "attention_dim": 32},
            "bags": {"slides_per_step": 4},
            "training": {**values, **training},
        }
    )


@dataclass
class Run:
    """A run of training in the main thread of a process of its own, as in a job."""

    store: Store
    name: str
    config: Config
    resize_interval_s: float = fitting.RESIZE_INTERVAL_S

    def start(self, entries: Sequence[BagEntry]) -> "Run":
        """Begin."""
        self.store.write_json(run_file(self.name, "cohort"), [entry.to_json() for entry in entries])
        spawning = multiprocessing.get_context("spawn")
        self._answer, answering = spawning.Pipe(duplex=False)
        work = (self.store.root, self.name, self.config, self.resize_interval_s, answering)
        self._process = spawning.Process(target=_fit, args=work, daemon=True)
        self._process.start()
        answering.close()
        return self

    @property
    def is_alive(self) -> bool:
        """Return whether it is still training."""
        return self._process.is_alive()

    @cached_property
    def error(self) -> Exception | None:
        """Wait for the end and return what it ended in."""
        try:
            return self._answer.recv()
        except EOFError:
            self._process.join()
            return RuntimeError(f"exit code {self._process.exitcode}")

    @property
    def epochs(self) -> int:
        """Return the number of committed epochs."""
        history = read_history(self.store, self.name)
        return len(history.rows) if history else 0

    def wait(self, is_time: Callable[[], bool]) -> bool:
        """Wait for something and return whether it came while the run was on. Raises: TimeoutError."""
        deadline = time.monotonic() + LIMIT_S
        while not is_time():
            if not self.is_alive:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: nothing happened for {LIMIT_S:g} s after epoch {self.epochs}")
            time.sleep(0.02)
        return True

    @property
    def connected_anew(self) -> int:
        """Return how often the driver connected to Ray anew."""
        return Path(self.store.path(_log_file(self.name))).read_text().count("they start again")

    def wrong(self, unbroken: "Run | None") -> list[str]:
        """Wait for the end and return what is wrong with it."""
        if not self._answer.poll(3 * LIMIT_S):
            return ["it did not end"]
        if self.error is not None:
            return [f"it ended in {type(self.error).__name__}: {self.error}"]
        learner = new_learner(self.config, SPEC, self.store, device=torch.device("cpu"))
        history = load_checkpoint(self.store, self.name, learner)
        wanted = self.config.training.epochs
        if history is None or len(history.rows) != wanted:
            return [f"{len(history.rows) if history else 0} epochs of {wanted}"]
        if unbroken is not None and self.digests() != unbroken.digests():
            return ["its weights or its history are not those of the unbroken run"]
        return []

    def digests(self) -> list[Any]:
        """Return what two runs must have in common: hashes of the weights and the optimiser, and the history."""
        record = self.store.read_record(f"{checkpoint_folder(self.name)}/latest.json")
        assert record is not None
        return [*(part.sha256 for part in record.parts), record.info["history"]["rows"]]


def _log_file(name: str) -> str:
    return f"{name}.log"


def _fit(root: str, name: str, config: Config, resize_interval_s: float, answer: Connection) -> None:
    """Train and tell how it ended."""
    fitting.RESIZE_INTERVAL_S = resize_interval_s
    error: Exception | None = None
    store = Store(root)
    with Path(store.path(_log_file(name))).open("w") as log:
        job = Job(config, store, Console(RichConsole(file=log, width=200)))
        try:
            fitting.fit(job, config, name, SPEC, Tracker(None, "none"))
        except DistmilError as known:
            error = known
        except Exception as unknown:  # noqa: BLE001 (it is the finding)
            error = RuntimeError(f"{type(unknown).__name__}: {unknown}")  # not everything of Ray's can be sent
    stop_ray()
    answer.send(error)


@contextmanager
def small_cluster() -> Iterator[tuple[Cluster, list[Any]]]:
    """Start a head without CPUs and two nodes of one CPU, for runs to join."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(CPUS)]
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster, nodes
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def worker_pids(root: int) -> list[int]:
    """Return the training workers among the processes that one started."""
    found = []
    for pid in [child.pid for child in descendants([root])[1:]]:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "RayTrainWorker" in line:
            found.append(pid)
    return found


def node_pids(node: Any) -> list[int]:
    """Return the training workers of a node."""
    return worker_pids(node.all_processes["raylet"][0].process.pid)
