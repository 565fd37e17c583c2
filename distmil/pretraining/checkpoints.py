"""Checkpoints of a pre-training: after every epoch, and after some minutes within one."""

from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from distmil.errors import StorageError
from distmil.pretraining.history import History
from distmil.pretraining.learner import Learner
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.training.checkpoints import (
    delete_older,
    load_optimizer,
    load_tensors,
    read_latest,
    tensors_to_keep,
    write_latest,
    write_state,
)
from distmil.training.ownership import Lease
from distmil.training.run_files import checkpoint_folder

_LOSSES = "history.losses"
_STEM = "step"


def save_checkpoint(store: Store, run: str, learner: Learner, history: History, *, lease: Lease | None = None) -> None:
    """Commit the learner after a step; older checkpoints go.

    Args:
        store: Where the run is.
        run: The run's name.
        learner: The learner to save.
        history: Up to this step.
        lease: The job's right to write; None where no other job can know the run.

    Raises:
        TrainingError: If the run belongs to another job now.
        StorageError: If the store cannot be written or read.
    """
    if lease is not None:
        lease.check(store)
    tensors = tensors_to_keep(learner.modules, learner.frozen)
    tensors[_LOSSES] = torch.tensor(history.losses, dtype=torch.float64)
    parts = write_state(store, run, f"{_STEM}-{learner.steps_done:08d}", tensors, learner.optimizer)
    key = {"epoch": history.epochs_done - 1, "step": learner.steps_done}
    write_latest(store, Record(run, key, parts=parts, info={"history": history.to_json()}), lease=lease)
    delete_older(store, run, _STEM, learner.steps_done, keep={part.name for part in parts})


def load_checkpoint(store: Store, run: str, learner: Learner) -> History | None:
    """Put the latest checkpoint into a learner and return the history up to it; None if there is none.

    Raises:
        StorageError: If a committed checkpoint is damaged, or cannot be read.
    """
    record = read_latest(store, run)
    if record is None:
        return None
    folder, (model, optimizer) = checkpoint_folder(run), record.parts
    tensors = load_safetensors(store.read_part(folder, model))
    losses = tensors.pop(_LOSSES, None)
    history = history_of(record)
    if losses is None or len(losses) != record.key["step"]:
        raise StorageError(f"{store.path(folder)} is not of a pre-training; delete it")
    history.losses = losses.tolist()
    load_tensors(store, run, learner.modules, tensors, frozen=learner.frozen)
    load_optimizer(store, run, learner.optimizer, optimizer)
    learner.steps_done = len(history.losses)
    return history


def read_progress(store: Store, run: str) -> tuple[History, int] | None:
    """Read the measures of a run's epochs and count its steps, without the losses; None if it has no checkpoint.

    Raises:
        StorageError: If the record is damaged, or cannot be read.
    """
    record = read_latest(store, run)
    return None if record is None else (history_of(record), int(record.key["step"]))


def history_of(record: Record) -> History:
    """Read the history in a record, without the losses."""
    found: dict[str, Any] = dict(record.info["history"])
    return History(rows=found["rows"], probe=found["probe"])
