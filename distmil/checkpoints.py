"""Checkpoints: what a run goes on from after any interruption.

Tensors are safetensors, the optimiser's state is loaded weights-only, the rest is JSON: no pickle that could run code.
Files first, the record last, as everywhere.
"""

import io

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from distmil.engine import History
from distmil.learner import Learner
from distmil.storage import Record, Store


def checkpoint_folder(run: str) -> str:
    """Return the folder of a run's checkpoints."""
    return f"checkpoints/{run}"


def save_checkpoint(store: Store, run: str, learner: Learner, history: History, *, is_best: bool) -> None:
    """Commit the learner after an epoch; older checkpoints go, but for the best one."""
    folder, epoch = checkpoint_folder(run), len(history.rows) - 1
    optimizer = io.BytesIO()
    torch.save(learner.optimizer.state_dict(), optimizer)
    parts = (
        store.write_part(folder, f"epoch-{epoch:05d}.safetensors", save_safetensors(_tensors(learner)), rows=1),
        store.write_part(folder, f"epoch-{epoch:05d}.pt", optimizer.getvalue(), rows=1),
    )
    info = {"history": vars(history), "steps_done": learner.steps_done}
    record = Record(slide_id=run, key={"epoch": epoch}, parts=parts, info=info)
    if is_best:
        store.write_record(f"{folder}/best.json", record)
    store.write_record(f"{folder}/latest.json", record)
    best = store.read_record(f"{folder}/best.json")
    keep = {part.name for kept in (record, best) if kept for part in kept.parts}
    for name in store.names(folder):
        if name.startswith("epoch-") and name not in keep:
            store.delete(f"{folder}/{name}")


def load_checkpoint(store: Store, run: str, learner: Learner, *, best: bool = False) -> History | None:
    """Put the latest (or best) checkpoint into a learner and return the run's history; None if there is none.

    Raises:
        StorageError: If a committed checkpoint is damaged.
    """
    folder = checkpoint_folder(run)
    record = store.read_record(f"{folder}/{'best' if best else 'latest'}.json")
    if record is None:
        return None
    model, optimizer = record.parts
    tensors = load_safetensors(store.read_part(folder, model))
    for prefix, module in _modules(learner).items():
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(own)
    state = torch.load(io.BytesIO(store.read_part(folder, optimizer)), map_location="cpu", weights_only=True)
    learner.optimizer.load_state_dict(state)
    learner.steps_done = record.info["steps_done"]
    return History(**record.info["history"])


def _modules(learner: Learner) -> dict[str, nn.Module]:
    """Return what a checkpoint holds, by the prefix of its tensors."""
    found = {"head.": learner.head, "encoder.": learner.encoder}
    if learner.averaged is not None:
        found |= {"averaged.head.": learner.averaged.head, "averaged.encoder.": learner.averaged.encoder}
    return {prefix: module for prefix, module in found.items() if module is not None}


def _tensors(learner: Learner) -> dict[str, Tensor]:
    return {
        f"{prefix}{key}": value.detach().cpu().contiguous()
        for prefix, module in _modules(learner).items()
        for key, value in module.state_dict().items()
    }
