"""What runs in each training worker."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch

from distmil.bags import Bag, BagEntry, open_bag
from distmil.checkpoints import checkpoint_folder, load_checkpoint, save_checkpoint
from distmil.config import Config
from distmil.configfile import build_config
from distmil.encoders import EncoderSpec, load_trainable
from distmil.engine import History, evaluate, keep_resident, train_epoch
from distmil.errors import DistmilError, TrainingError
from distmil.group import Group
from distmil.learner import Learner, fit_normaliser, make_learner
from distmil.memory import keep_freed_memory
from distmil.models.baselines import make_network
from distmil.sampling import StepPlanner
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


@dataclass
class Opened:
    """What a worker trains, and on what."""

    learner: Learner
    planner: StepPlanner
    learning: list[Bag]
    judging: list[Bag]
    history: History


def _open_run(config: Config, store: Store, run: str, spec: EncoderSpec, *, is_gpu: bool) -> Opened:
    """Open the bags and go on from the latest checkpoint."""
    device = ray.train.torch.get_device() if is_gpu and torch.cuda.is_available() else torch.device("cpu")
    entries = [BagEntry.from_json(values) for values in store.read_json(run_file(run, "cohort"))]
    classes = len(config.cohort.classes)
    bags = [open_bag(store, entry, num_classes=classes, form=config.labels.form) for entry in entries]
    learning = [bag for bag in bags if bag.split == "train"]
    judging = [bag for bag in bags if bag.split == "val"]
    planner = StepPlanner(
        learning, config.bags, num_classes=classes, seed=config.training.seed, epochs=config.training.epochs
    )
    learner = new_learner(config, spec, store, device=device)
    history = load_checkpoint(store, run, learner)
    if history is None:
        history = History()
        fit_normaliser(learner, learning, seed=config.training.seed, batch_size=config.encoder.batch_size)
    return Opened(learner, planner, keep_resident(learning, config, device), judging, history)


def _run_epochs(
    config: Config, store: Store, run: str, spec: EncoderSpec, group: Group, *, is_gpu: bool
) -> dict[str, Any]:
    opened = together(group, lambda: _open_run(config, store, run, spec, is_gpu=is_gpu))
    learner, history = opened.learner, opened.history
    while not is_finished(history, config):
        started = time.monotonic()
        epoch = len(history.rows)
        losses = train_epoch(learner, opened.learning, opened.planner, config, epoch=epoch, group=group)
        row: dict[str, float | None] = {f"loss_{name}" if name != "loss" else name: v for name, v in losses.items()}
        row |= {f"val_{name}": value for name, value in evaluate(learner, opened.judging, config, group=group).items()}
        is_best = history.add(row, select_by=config.training.select_by)
        save = partial(save_checkpoint, store, run, learner, history, is_best=is_best)
        together(group, save if group.rank == 0 else _nothing)
        ray.train.report({**row, "epoch": epoch, "epoch_s": time.monotonic() - started})
    return {"epochs": len(history.rows)}


def _nothing() -> None:
    """Leave it to rank 0."""


def new_learner(config: Config, spec: EncoderSpec, store: Store, *, device: torch.device) -> Learner:
    """Return a freshly initialised learner, the same on every worker."""
    torch.manual_seed(config.training.seed)
    head = make_network(config.model, embedding_dim=spec.dimension, num_classes=len(config.cohort.classes))
    encoder = load_trainable(spec, store) if config.encoder.trainable else None
    return make_learner(config, head, encoder, device)


def is_finished(history: History, config: Config) -> bool:
    """Return whether a run has all its epochs, or stopped early."""
    return len(history.rows) >= config.training.epochs or history.is_stale(config.training.patience)


def read_history(store: Store, run: str) -> History | None:
    """Return the history of a run's latest checkpoint, None if there is none."""
    record = store.read_record(f"{checkpoint_folder(run)}/latest.json")
    return History(**record.info["history"]) if record else None


def run_file(run: str, what: str) -> str:
    """Return the name of a file beside a run's checkpoints."""
    return f"{checkpoint_folder(run)}/{what}.json"
