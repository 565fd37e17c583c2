"""Model bundles: everything that a trained model needs to judge a slide, in one folder without pickle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from distmil import __version__
from distmil.config import Config
from distmil.configfile import build_config
from distmil.errors import BundleError, ConfigError, StorageError
from distmil.models.baselines import make_network
from distmil.models.network import Network
from distmil.storage import Record, Store

BUNDLE_VERSION = 1
ENCODER_FILE = "encoder.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A trained model and everything it needs to judge a slide."""

    run: str
    config: Config
    head: Network
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
        head = make_network(built.model, embedding_dim=config["embedding_dim"], num_classes=len(built.cohort.classes))
        head.load_state_dict(load_safetensors(found.read_part(".", parts["model.safetensors"])))
        encoder = parts.get(ENCODER_FILE)
        return Bundle(
            run=config["run"],
            config=built,
            head=head.eval(),
            encoder_state=load_safetensors(found.read_part(".", encoder)) if encoder else None,
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
        "encoder": full["encoder"] | {"weights": _without_folder(config.encoder.weights)},
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
    theirs = {**bundle.config.flat(), "encoder.weights": _without_folder(bundle.config.encoder.weights)}
    values = bundle_values(bundle.config)
    clashes = []
    for key, value in config.explicit().items():
        section, _, name = key.partition(".")
        if section not in values or (name not in values[section]):
            continue
        if key in per_job:
            values[section][name] = value
        elif (_without_folder(value) if key == "encoder.weights" else value) != theirs[key]:
            clashes.append(f"{key} = {value!r}: the bundle {bundle.run} was trained with {theirs[key]!r}; leave it out")
    if clashes:
        raise ConfigError("\n".join(clashes))
    merged = config.model_dump()
    for section, own in values.items():
        merged[section] |= own
    return build_config(merged)


def _without_folder(weights: str) -> str:
    """Return a weights file's name alone: a bundle tells nothing of the machine it was made on."""
    return Path(weights).name


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
