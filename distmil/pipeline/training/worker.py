"""The work of each training worker."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch

from distmil.bags.bag import Bag, BagEntry, open_all_bags
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.errors import DistmilError, StorageError, TrainingError
from distmil.processes.malloc import keep_freed_memory
from distmil.storage.store import Store
from distmil.training.checkpoints import read_latest, save_checkpoint
from distmil.training.engine import History
from distmil.training.ownership import Lease
from distmil.training.run import Run, open_run
from distmil.training.run_files import run_file
from distmil.training.workers import Workers, WorkersFailed

FETCHERS = 8
FETCH_TURN_S = 30.0


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker: every worker holds the same plan and takes its share of each step.

    An error of all workers is returned, for every retry would end in it as well. An error that a worker meets
    alone, in the middle of a step, is raised: the others wait for it, and only its failure ends them.
    """
    lease, spec = Lease(**settings["lease"]), EncoderSpec(**settings["spec"])

    def work(config: Config, store: Store, workers: Workers) -> dict[str, Any]:
        return _run_epochs(config, store, settings["run"], spec, workers, lease=lease, is_gpu=settings["is_gpu"])

    return as_worker(settings, work)


def as_worker(settings: dict[str, Any], work: Callable[[Config, Store, Workers], dict[str, Any]]) -> dict[str, Any]:
    """Do a worker's part of the work, as ``make_workers`` sets it up; see ``train_worker`` for errors."""
    config, store = build_config(settings["config"]), Store(settings["root"])
    torch.set_num_threads(settings["threads"])  # Ray Train sets one for all
    if not settings["is_gpu"]:
        keep_freed_memory()
    workers = Workers.current()
    try:
        return work(config, store, workers)
    except WorkersFailed as failed:
        return {"error": failed.__cause__}
    except DistmilError as error:
        if workers.size > 1 and not isinstance(error, TrainingError):
            raise
        return {"error": error}


def _open(config: Config, store: Store, run: str, spec: EncoderSpec, *, is_gpu: bool) -> Run:
    """Open the bags and go on from the latest checkpoint."""
    bags = open_bags(store, run, form=config.labels.form, num_classes=len(config.cohort.classes))
    learning = [bag for bag in bags if bag.split == "train"]
    validation = [bag for bag in bags if bag.split == "val"]
    return open_run(config, learning, validation, spec, store, name=run, device=choose_device(is_gpu=is_gpu))


def _run_epochs(
    config: Config, store: Store, name: str, spec: EncoderSpec, workers: Workers, *, lease: Lease, is_gpu: bool
) -> dict[str, Any]:
    fetch(store, name, workers)
    run = workers.together(lambda: _open(config, store, name, spec, is_gpu=is_gpu))
    check_same_start(run.history, workers)
    while not run.is_finished:
        started = time.monotonic()
        is_best = run.advance(workers)
        workers.on_rank_0(partial(save_checkpoint, store, name, run.learner, run.history, is_best=is_best, lease=lease))
        epoch = len(run.history.rows) - 1
        ray.train.report({**run.history.rows[-1], "epoch": epoch, "epoch_s": time.monotonic() - started})
    return {"epochs": len(run.history.rows)}


def fetch(store: Store, run: str, workers: Workers) -> None:
    """Copy the files that the workers read from a far store to this machine's disk, on all workers before any goes on.

    Workers meet every ``FETCH_TURN_S`` seconds, so that no collective waits longer than its timeout.

    Raises:
        StorageError: If a file is damaged or gone, or there is no room for it.
    """
    if store.is_local:
        return
    with ThreadPoolExecutor(FETCHERS) as pool:
        copies = [pool.submit(store.local_copy, *file) for entry in read_entries(store, run) for file in entry.files]
        while not all(workers.gather(not wait(copies, timeout=FETCH_TURN_S).not_done)):
            pass
    workers.together(lambda: [copy.result() for copy in copies])


def check_same_start(history: History, workers: Workers) -> None:
    """Make sure that all workers go on from the same checkpoint. Raises: StorageError on all of them if not."""
    check_alike(len(history.rows), history.rows[-1:], workers, unit="epochs")


def check_alike(count: int, state: Any, workers: Workers, *, unit: str) -> None:
    """Make sure that all workers go on from as many epochs or steps, and one state. Raises: StorageError on all."""
    found = workers.gather((count, state))
    if any(each != found[0] for each in found):
        counts = ", ".join(str(count) for count, _ in found)
        raise StorageError(
            f"workers see different checkpoints, after {counts} {unit}: the storage shows files late, or not the same "
            "ones to all nodes"
        )


def open_bags(store: Store, run: str, *, form: str, num_classes: int) -> list[Bag]:
    """Open the bags that a run was started with, with targets of ``labels.form``."""
    return open_all_bags(store, read_entries(store, run), num_classes=num_classes, form=form)


def read_entries(store: Store, run: str) -> list[BagEntry]:
    """Read the slides that a run was started with."""
    return [BagEntry.from_json(values) for values in store.read_checked(run_file(run, "cohort"), owner=run)]


def choose_device(*, is_gpu: bool) -> torch.device:
    """Choose the GPU that Ray gave this worker, or the CPU."""
    return ray.train.torch.get_device() if is_gpu and torch.cuda.is_available() else torch.device("cpu")


def read_history(store: Store, run: str) -> History | None:
    """Read the history of a run's latest checkpoint, None if there is none."""
    record = read_latest(store, run)
    return History(**record.info["history"]) if record else None
