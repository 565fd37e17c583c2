"""Checkpoints: a run resumes from them after any interruption.

Tensors are safetensors, the optimiser's state is loaded weights-only, the rest is JSON: no pickle that could run code.
Files first, the record last, as everywhere.
"""

import hashlib
import io
import re
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from distmil.errors import StorageError
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.training.engine import History
from distmil.training.learner import Learner
from distmil.training.ownership import Lease
from distmil.training.run_files import checkpoint_folder, run_file

_EPOCH = re.compile(r"epoch-(\d+)[.-]")


def save_checkpoint(
    store: Store, run: str, learner: Learner, history: History, *, is_best: bool, lease: Lease | None = None
) -> None:
    """Commit the learner after an epoch; older checkpoints go, but for the best one.

    One record names both: a kill between two would leave a best one whose files the next try overwrites. The files'
    names hold their checksums, so that two jobs of one run never overwrite each other's.

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
    folder, epoch = checkpoint_folder(run), len(history.rows) - 1
    if lease is not None:
        lease.check(store)
    optimizer = io.BytesIO()
    torch.save(learner.optimizer.state_dict(), optimizer)
    modules, frozen = _modules(learner), _frozen(learner)
    tensors = {key: value.cpu().contiguous() for key, value in modules.state_dict().items() if key not in frozen}
    files = {".safetensors": save_safetensors(tensors), ".pt": optimizer.getvalue()}
    parts = tuple(
        store.write_part(folder, f"epoch-{epoch:05d}-{hashlib.sha256(data).hexdigest()[:8]}{suffix}", data, rows=1)
        for suffix, data in files.items()
    )
    latest: dict[str, Any] = {"parts": [asdict(part) for part in parts], "steps_done": learner.steps_done}
    earlier = None if is_best else read_latest(store, run)
    best = latest if earlier is None else earlier.info["best"]
    info = {"history": vars(history), "steps_done": learner.steps_done, "best": best}
    if lease is not None:
        lease.check(store)  # the files took a moment to write
    store.write_record(_record_name(run), Record(run, {"epoch": epoch}, parts=parts, info=info))
    keep = {part["name"] for kept in (latest, best) for part in kept["parts"]}
    for name in store.names(folder):
        # Unnamed files of this epoch or a later one may be those of a job that takes over just now.
        if (found := _EPOCH.match(name)) and int(found[1]) < epoch and name not in keep:
            store.delete(f"{folder}/{name}")


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
    found = _modules(learner).load_state_dict(load_safetensors(store.read_part(folder, model)), strict=False)
    if found.unexpected_keys or not _frozen(learner).issuperset(found.missing_keys):
        raise StorageError(f"{store.path(f'{folder}/{model.name}')} is of another network; delete {store.path(folder)}")
    state = torch.load(io.BytesIO(store.read_part(folder, optimizer)), map_location="cpu", weights_only=True)
    learner.optimizer.load_state_dict(state)
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
