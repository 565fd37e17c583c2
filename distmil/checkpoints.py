"""What training leaves behind: a checkpoint each epoch to go on from, and the bundle that predicts.

Tensors are safetensors, the optimiser's state is loaded weights-only, everything else is JSON: no pickle that could run
code. Both follow the commit protocol: files first, the record last.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from distmil import __version__
from distmil.config import Config, build_config
from distmil.engine import History, Learner
from distmil.errors import BundleError, ConfigError, StorageError
from distmil.models.dual import DualNetwork
from distmil.storage import Part, Record, Store

BUNDLE_VERSION = 1
ENCODER_FILE = "encoder.safetensors"


# --- checkpoints -------------------------------------------------------------------------------------------------


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
    tensors = load_safetensors(_verified(store, folder, model))
    learner.head.load_state_dict(_with_prefix(tensors, "head."))
    if learner.encoder is not None:
        learner.encoder.load_state_dict(_with_prefix(tensors, "encoder."))
    state = torch.load(io.BytesIO(_verified(store, folder, optimizer)), map_location="cpu", weights_only=True)
    learner.optimizer.load_state_dict(state)
    learner.steps_done = record.info["steps_done"]
    return History(**record.info["history"])


def _tensors(learner: Learner) -> dict[str, Tensor]:
    tensors = {f"head.{key}": value for key, value in learner.head.state_dict().items()}
    if learner.encoder is not None:
        tensors |= {f"encoder.{key}": value for key, value in learner.encoder.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _verified(store: Store, folder: str, part: Part) -> bytes:
    """Read a committed file and compare its checksum. Raises: StorageError."""
    name = f"{folder}/{part.name}"
    try:
        data = store.read(name)
    except FileNotFoundError as error:
        raise StorageError(f"{store.path(name)} is gone, though it was committed") from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise StorageError(f"{store.path(name)} is damaged: its checksum is not the committed one")
    return data


# --- bundles -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A trained model and everything it needs to judge a slide."""

    run: str
    config: Config
    head: DualNetwork
    encoder_state: dict[str, Tensor] | None
    patch_threshold: float = 0.5
    slide_threshold: float = 0.5
    digest: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Return the class names in index order."""
        return self.config.cohort.classes


def bundle_folder(run: str) -> str:
    """Return the folder of a run's bundle."""
    return f"models/{run}"


def save_bundle(store: Store, bundle: Bundle) -> Record:
    """Commit a bundle under ``models/<run>/`` and return its record."""
    folder = bundle_folder(bundle.run)
    head = {key: value.detach().cpu().contiguous() for key, value in bundle.head.state_dict().items()}
    config = {
        "format_version": BUNDLE_VERSION,
        "distmil": __version__,
        "run": bundle.run,
        "embedding_dim": bundle.head.normaliser.mean.numel(),
        "config": bundle_values(bundle.config),
    }
    labels = {
        "classes": bundle.classes,
        "patch_threshold": bundle.patch_threshold,
        "slide_threshold": bundle.slide_threshold,
    }
    parts = [store.write_part(folder, "model.safetensors", save_safetensors(head), rows=1)]
    if bundle.encoder_state is not None:
        parts.append(store.write_part(folder, ENCODER_FILE, save_safetensors(bundle.encoder_state), rows=1))
    store.write_json(f"{folder}/config.json", config)
    store.write_json(f"{folder}/labels.json", labels)
    store.write_json(f"{folder}/metrics.json", dict(bundle.metrics))
    record = Record(slide_id=bundle.run, key={"format_version": BUNDLE_VERSION}, parts=tuple(parts))
    store.write_record(f"{folder}/commit.json", record)
    return record


def load_bundle(place: str, store: Store) -> Bundle:
    """Load a bundle from its folder, or by its run's name under the store.

    Raises:
        BundleError: If it is missing, unfinished, damaged or of another format version.
    """
    found = _find(place, store)
    folder = found.root
    record = found.read_record("commit.json")
    if record is None:
        raise BundleError(f"{folder} is no finished bundle: it has no readable commit.json; train the run to its end")
    try:
        config, labels = found.read_json("config.json"), found.read_json("labels.json")
        if config["format_version"] != BUNDLE_VERSION:
            raise BundleError(
                f"{folder} has format version {config['format_version']}, this distmil reads {BUNDLE_VERSION}"
            )
        parts = {part.name: part for part in record.parts}
        built = build_config(config["config"])
        head = DualNetwork(built.model, embedding_dim=config["embedding_dim"], num_classes=len(built.cohort.classes))
        head.load_state_dict(load_safetensors(_verified(found, ".", parts["model.safetensors"])))
        encoder = parts.get(ENCODER_FILE)
        return Bundle(
            run=config["run"],
            config=built,
            head=head.eval(),
            encoder_state=load_safetensors(_verified(found, ".", encoder)) if encoder else None,
            patch_threshold=labels["patch_threshold"],
            slide_threshold=labels["slide_threshold"],
            digest=record.digest,
            metrics=found.read_json("metrics.json"),
        )
    except (FileNotFoundError, KeyError, StorageError, ConfigError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error


def bundle_values(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that a bundle carries, nested as in a YAML file."""
    full = config.model_dump()
    return {
        "cohort": {"classes": full["cohort"]["classes"]},
        "tiling": full["tiling"],
        "encoder": full["encoder"],
        "model": full["model"],
        "bags": {"top_k": full["bags"]["top_k"]},
    }


def with_bundle(config: Config, bundle: Bundle, *, per_job: set[str]) -> Config:
    """Return a job's configuration with tiling, encoder, model and classes from the bundle.

    Args:
        config: The job's own.
        bundle: Its model.
        per_job: Dotted keys that the job may set for itself.

    Raises:
        ConfigError: If the job sets one of the bundle's keys to something else.
    """
    theirs = bundle.config.flat()
    values = bundle_values(bundle.config)
    clashes = []
    for key, value in config.explicit().items():
        section, _, name = key.partition(".")
        if section not in values or (name not in values[section]):
            continue
        if key in per_job:
            values[section][name] = value
        elif value != theirs[key]:
            clashes.append(f"{key} = {value!r}: the bundle {bundle.run} was trained with {theirs[key]!r}; leave it out")
    if clashes:
        raise ConfigError("\n".join(clashes))
    merged = config.model_dump()
    for section, own in values.items():
        merged[section] |= own
    return build_config(merged)


def _find(place: str, store: Store) -> Store:
    """Return the bundle's folder as a store of its own."""
    if "://" not in place and not Path(place).expanduser().is_dir() and store.exists(bundle_folder(place)):
        return Store(store.path(bundle_folder(place)))
    folder = place if "://" in place else str(Path(place).expanduser().resolve())
    if "://" not in folder and not Path(folder).is_dir():
        raise BundleError(
            f"prediction.model = {place!r}: there is no such folder, nor a run of that name under {store.root}/models"
        )
    return Store(folder)
