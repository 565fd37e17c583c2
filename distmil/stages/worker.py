"""What runs in each training worker."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch

from distmil.bags import Bag, BagEntry, open_bag
from distmil.checkpoints import checkpoint_folder, save_checkpoint
from distmil.config import Config
from distmil.configfile import build_config
from distmil.encoders import EncoderSpec
from distmil.engine import History
from distmil.errors import DistmilError, TrainingError
from distmil.group import Group
from distmil.memory import keep_freed_memory
from distmil.runs import Run, open_run
from distmil.storage import Store

Result = TypeVar("Result")


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker: every worker holds the same plan and takes its share of each step.

    What is wrong for the whole group is returned, for every retry would end in it as well. What a worker meets alone,
    in the middle of a step, is raised: the others wait for it, and only its failure ends them.
    """
    config, store, run = build_config(settings["config"]), Store(settings["root"]), settings["run"]
    torch.set_num_threads(settings["threads"])  # Ray Train sets one for all
    if not settings["is_gpu"]:
        keep_freed_memory()
    group = Group.current()
    try:
        return _run_epochs(config, store, run, EncoderSpec(**settings["spec"]), group, is_gpu=settings["is_gpu"])
    except GroupFailed as failed:
        return {"error": failed.__cause__}
    except DistmilError as error:
        if group.size > 1 and not isinstance(error, TrainingError):
            raise
        return {"error": error}


class GroupFailed(Exception):
    """Every worker knows of the failure that is this one's cause."""


def together(group: Group, work: Callable[[], Result]) -> Result:
    """Do something on every worker at once, and fail on all of them where it fails on one.

    Raises:
        GroupFailed: From the first worker's failure.
    """
    failure: DistmilError | None = None
    try:
        result = work()
    except DistmilError as error:
        failure = error
    first = next((found for found in group.gather(failure) if found is not None), None)
    if first is not None:
        raise GroupFailed from first
    return result


def _open(config: Config, store: Store, run: str, spec: EncoderSpec, *, is_gpu: bool) -> Run:
    """Open the bags and go on from the latest checkpoint."""
    bags = open_bags(config, store, run)
    learning = [bag for bag in bags if bag.split == "train"]
    judging = [bag for bag in bags if bag.split == "val"]
    return open_run(config, learning, judging, spec, store, name=run, device=choose_device(is_gpu=is_gpu))


def _run_epochs(
    config: Config, store: Store, name: str, spec: EncoderSpec, group: Group, *, is_gpu: bool
) -> dict[str, Any]:
    run = together(group, lambda: _open(config, store, name, spec, is_gpu=is_gpu))
    while not run.is_finished:
        started = time.monotonic()
        is_best = run.advance(group)
        save = partial(save_checkpoint, store, name, run.learner, run.history, is_best=is_best)
        together(group, save if group.rank == 0 else _nothing)
        epoch = len(run.history.rows) - 1
        ray.train.report({**run.history.rows[-1], "epoch": epoch, "epoch_s": time.monotonic() - started})
    return {"epochs": len(run.history.rows)}


def _nothing() -> None:
    """Leave it to rank 0."""


def open_bags(config: Config, store: Store, run: str) -> list[Bag]:
    """Return the bags that a run was started with."""
    entries = [BagEntry.from_json(values) for values in store.read_json(run_file(run, "cohort"))]
    classes = len(config.cohort.classes)
    return [open_bag(store, entry, num_classes=classes, form=config.labels.form) for entry in entries]


def choose_device(*, is_gpu: bool) -> torch.device:
    """Return the GPU that Ray gave this worker, or the CPU."""
    return ray.train.torch.get_device() if is_gpu and torch.cuda.is_available() else torch.device("cpu")


def read_history(store: Store, run: str) -> History | None:
    """Return the history of a run's latest checkpoint, None if there is none."""
    record = store.read_record(f"{checkpoint_folder(run)}/latest.json")
    return History(**record.info["history"]) if record else None


def run_file(run: str, what: str) -> str:
    """Return the name of a file beside a run's checkpoints."""
    return f"{checkpoint_folder(run)}/{what}.json"
