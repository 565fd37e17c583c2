"""What breaks while workers train: a worker dies, the store cannot be written, the numbers are not finite."""

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console as RichConsole

from distmil.bags.bag import BagEntry
from distmil.console import Console
from distmil.errors import DistmilError, SlideError, StorageError
from distmil.pipeline.job import Job
from distmil.pipeline.training.workers import _cores_each, fit
from distmil.storage.schemas import embeddings_schema, to_ipc
from distmil.storage.store import Store
from distmil.tracking.tracker import Tracker
from distmil.training.checkpoints import load_checkpoint
from distmil.training.run import new_learner
from distmil.training.run_files import checkpoint_folder, run_file
from distmil.training.workers import Workers, WorkersFailed
from tests.campaigns.training_runs import SPEC, Run, make_cohort, make_config, worker_pids
from tests.support.thread_workers import run_as_workers


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that trains on a local Ray."""
    quiet = pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings
    for mark in (pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray"), quiet):
        test = mark(test)
    return test


class RunHere(Run):
    """A run of training in a thread of this process, on the Ray that runs."""

    def start(self, entries: Sequence[BagEntry]) -> "RunHere":
        self.store.write_json(run_file(self.name, "cohort"), [entry.to_json() for entry in entries])
        self._answer, answering = multiprocessing.Pipe(duplex=False)
        self._process = threading.Thread(target=self._fit, args=(answering,), daemon=True)
        self._process.start()
        return self

    def _fit(self, answer: Connection) -> None:
        error: Exception | None = None
        job = Job(self.config, self.store, Console(RichConsole(file=io.StringIO())))
        try:
            fit(job, self.config, self.name, SPEC, Tracker(None, "none"))
        except DistmilError as known:
            error = known
        except Exception as unknown:  # noqa: BLE001 (it is the finding)
            error = RuntimeError(f"{type(unknown).__name__}: {unknown}")  # not everything of Ray's can be sent
        answer.send(error)


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Store, list[BagEntry]]:
    return make_cohort(tmp_path)


def latest_epoch(run: Run) -> int | None:
    """Load the latest checkpoint and return its epoch."""
    learner = new_learner(run.config, SPEC, run.store, device=torch.device("cpu"))
    history = load_checkpoint(run.store, run.name, learner)
    return len(history.rows) - 1 if history else None


def files(run: Run) -> set[str]:
    return {path.name for path in Path(run.store.path(checkpoint_folder(run.name))).iterdir() if path.is_file()}


@on_ray
def test_a_killed_worker_costs_an_epoch_at_most(cohort: tuple[Store, list[BagEntry]]) -> None:
    store, entries = cohort
    run = RunHere(store, "killed", make_config(epochs=8, min_workers=1, max_failures=1)).start(entries)
    assert run.wait(lambda: run.epochs >= 2)
    os.kill(worker_pids(os.getpid())[0], signal.SIGKILL)
    assert run.wrong(None) == []
    assert latest_epoch(run) == 7
    assert len(files(run) - {"cohort.json", "latest.json", "owner.json"}) in {2, 4}


@on_ray
def test_a_store_that_one_worker_cannot_write_stops_all_and_keeps_what_was_saved(
    cohort: tuple[Store, list[BagEntry]],
) -> None:
    store, entries = cohort
    run = RunHere(store, "full", make_config(epochs=500)).start(entries)
    assert run.wait(lambda: run.epochs >= 2)
    folder = Path(store.path(checkpoint_folder(run.name)))
    kept = folder.rename(folder.with_name("kept"))
    folder.touch()  # in the folder's place
    failures = run.wrong(None)
    assert isinstance(run.error, StorageError), failures
    assert str(folder) in str(run.error)  # in it, or of it: a worker writes there, then lists what is older
    folder.unlink()
    kept.rename(folder)
    epoch = latest_epoch(run)
    assert epoch is not None
    assert epoch >= 1
    assert not [name for name in files(run) if ".tmp-" in name]


@on_ray
def test_embeddings_that_are_not_finite_end_in_an_error_without_a_checkpoint(
    cohort: tuple[Store, list[BagEntry]],
) -> None:
    store, entries = cohort
    run = RunHere(store, "nan", make_config(epochs=3, num_workers=1)).start(
        [poisoned(store, entries[1]), *entries[2:], entries[0]]
    )
    failures = run.wrong(None)
    assert isinstance(run.error, SlideError), failures
    assert "slide-01: the embedding of patch 0 is not finite" in str(run.error)
    assert latest_epoch(run) is None
    assert files(run) == {"cohort.json", "owner.json"}


def poisoned(store: Store, entry: BagEntry) -> BagEntry:
    """Put a NaN into each of a slide's embeddings."""
    path = Path(store.path(f"{entry.folder}/{entry.parts[0].name}"))
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        flat = table["embedding"].combine_chunks().flatten().to_numpy().copy()
        places = [table[name].combine_chunks() for name in table.column_names[:-1]]
        width = len(flat) // table.num_rows
        flat[::width] = np.nan
        array = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
        data = to_ipc(pa.table([*places, array], schema=embeddings_schema(width)))
    part = store.write_part(entry.folder, "part-1.arrow", data, rows=entry.num_patches)
    return BagEntry.from_json({**entry.to_json(), "parts": [vars(part)]})


def test_a_failure_of_one_worker_is_known_to_all() -> None:
    def work(workers: Workers) -> str:
        def fail_on_the_last() -> None:
            if workers.rank == 2:
                raise StorageError("the disk is full")

        try:
            workers.together(fail_on_the_last)
        except WorkersFailed as error:
            return f"{type(error.__cause__).__name__}: {error.__cause__}"
        return "went on"

    assert run_as_workers(3, work) == ["StorageError: the disk is full"] * 3


@pytest.mark.parametrize(
    ("cores", "workers", "each"),
    [([8], 2, 4), ([2, 6], 2, 3), ([4, 4, 0], 2, 4), ([3, 4], 2, 3), ([2], 4, 1), ([0], 1, 1), ([5], 1, 5)],
)
def test_workers_get_the_cores_that_fit_on_nodes(cores: list[int], workers: int, each: int) -> None:
    assert _cores_each(cores, workers) == each
