"""Checkpoints: a run resumes from them after any interruption.

Tensors are safetensors, the optimiser's state is loaded weights-only, the rest is JSON: no pickle that could run code.
Files first, the record last, as everywhere.
"""

import hashlib
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from distmil.errors import StorageError
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.training.engine import History
from distmil.training.learner import Learner
from distmil.training.ownership import Lease
from distmil.training.run_files import checkpoint_folder, run_file

_STEM = "epoch"


def save_checkpoint(
    store: Store, run: str, learner: Learner, history: History, *, is_best: bool, lease: Lease | None = None
) -> None:
    """Commit the learner after an epoch; older checkpoints go, but for the best one.

    One record names both: a kill between two would leave a best one whose files the next try overwrites.

    Args:
        store: Where the run is.
        run: The run's name.
        learner: The learner to save.
        history: The rows up to this epoch.
        is_best: Whether this epoch is the best so far.
        lease: The job's right to write; None where no other job can know the run.

    Raises:
        TrainingError: If the run belongs to another job now.
        StorageError: If the store cannot be written or read.
    """
    epoch = len(history.rows) - 1
    if lease is not None:
        lease.check(store)
    modules, frozen = _modules(learner), _frozen(learner)
    parts = write_state(store, run, f"{_STEM}-{epoch:05d}", tensors_to_keep(modules, frozen), learner.optimizer)
    latest: dict[str, Any] = {"parts": [asdict(part) for part in parts], "steps_done": learner.steps_done}
    earlier = None if is_best else read_latest(store, run)
    best = latest if earlier is None else earlier.info["best"]
    info = {"history": vars(history), "steps_done": learner.steps_done, "best": best}
    write_latest(store, Record(run, {"epoch": epoch}, parts=parts, info=info), lease=lease)
    delete_older(store, run, _STEM, epoch, keep={part["name"] for kept in (latest, best) for part in kept["parts"]})


def tensors_to_keep(modules: nn.ModuleDict, frozen: Collection[str]) -> dict[str, Tensor]:
    """Take the tensors of modules that training changes."""
    return {key: value.cpu().contiguous() for key, value in modules.state_dict().items() if key not in frozen}


def write_state(
    store: Store, run: str, stem: str, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[Part, ...]:
    """Write tensors and the optimiser's state into a run's folder, before their record, and return their entries.

    The files' names hold their checksums, so that two jobs of one run never overwrite each other's.
    """
    state = io.BytesIO()
    torch.save(optimizer.state_dict(), state)
    files = {".safetensors": save_safetensors(dict(tensors)), ".pt": state.getvalue()}
    folder = checkpoint_folder(run)
    return tuple(
        store.write_part(folder, f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}{suffix}", data, rows=1)
        for suffix, data in files.items()
    )


def write_latest(store: Store, record: Record, *, lease: Lease | None) -> None:
    """Commit a run's latest checkpoint. Raises: TrainingError if the run belongs to another job now."""
    if lease is not None:
        lease.check(store)  # the files took a moment to write
    store.write_record(_record_name(record.name), record)


def delete_older(store: Store, run: str, stem: str, number: int, *, keep: Collection[str]) -> None:
    """Delete the files of a run's older checkpoints.

    Unnamed files of this number or a later one may be those of a job that takes over just now.
    """
    folder, numbered = checkpoint_folder(run), re.compile(rf"{stem}-(\d+)[.-]")
    for name in store.names(folder):
        if (found := numbered.match(name)) and int(found[1]) < number and name not in keep:
            store.delete(f"{folder}/{name}")


def load_tensors(
    store: Store, run: str, modules: nn.ModuleDict, tensors: Mapping[str, Tensor], *, frozen: Collection[str]
) -> None:
    """Put a checkpoint's tensors into modules. Raises: StorageError if they are of other ones."""
    found = modules.load_state_dict(tensors, strict=False)
    if found.unexpected_keys or not set(frozen).issuperset(found.missing_keys):
        folder = store.path(checkpoint_folder(run))
        raise StorageError(f"the checkpoint in {folder} is of another network; delete {folder}")


def load_optimizer(store: Store, run: str, optimizer: torch.optim.Optimizer, part: Part) -> None:
    """Put a checkpoint's state into an optimiser. Raises: StorageError if it is damaged."""
    data = io.BytesIO(store.read_part(checkpoint_folder(run), part))
    optimizer.load_state_dict(torch.load(data, map_location="cpu", weights_only=True))


def load_checkpoint(store: Store, run: str, learner: Learner, *, best: bool = False) -> History | None:
    """Put the latest (or best) checkpoint into a learner and return the run's history up to it; None if there is none.

    Raises:
        StorageError: If a committed checkpoint is damaged, or cannot be read.
    """
    record = read_latest(store, run)
    if record is None:
        return None
    history, steps_done, parts = History(**record.info["history"]), record.info["steps_done"], record.parts
    if best:
        history = History(history.rows[: history.best_epoch + 1], history.best_epoch)
        parts, steps_done = [Part(**part) for part in record.info["best"]["parts"]], record.info["best"]["steps_done"]
    folder = checkpoint_folder(run)
    model, optimizer = parts
    tensors = load_safetensors(store.read_part(folder, model))
    load_tensors(store, run, _modules(learner), tensors, frozen=_frozen(learner))
    load_optimizer(store, run, learner.optimizer, optimizer)
    learner.steps_done = steps_done
    return history


def read_latest(store: Store, run: str) -> Record | None:
    """Return the record of a run's latest checkpoint, None if it has none.

    Raises:
        StorageError: If it cannot be read or is damaged: to begin again would throw the committed epochs away.
    """
    name = _record_name(run)
    record = store.read_record(name)
    wrong = "is damaged" if record is None else f"belongs to the run {record.name}"
    if record.name != run if record else store.exists(name):
        folder = store.path(checkpoint_folder(run))
        raise StorageError(f"{store.path(name)} {wrong}; restore it, or delete {folder} to train again")
    return record


def _record_name(run: str) -> str:
    return run_file(run, "latest")


def _frozen(learner: Learner) -> set[str]:
    """Name the tensors that training leaves alone; the encoder's stored weights hold them."""
    return {name for name, parameter in _modules(learner).named_parameters() if not parameter.requires_grad}


def _modules(learner: Learner) -> nn.ModuleDict:
    """Gather the modules of a checkpoint by the first part of their tensors' names."""
    found = {"head": learner.head, "encoder": learner.encoder, "averaged": learner.averaged}
    return nn.ModuleDict({name: module for name, module in found.items() if module is not None})
