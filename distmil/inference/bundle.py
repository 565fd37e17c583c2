"""Model bundles: everything that a trained model needs to score a slide, in one folder without pickle.

A bundle is one thing: its commit record names every file with its checksum, and its digest covers them all.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save as save_safetensors
from torch import Tensor

from distmil import __version__
from distmil.config.loading import build_config, per_job_keys
from distmil.config.root import Config
from distmil.config.section import NAME_PATTERN
from distmil.errors import BundleError, ConfigError, StorageError
from distmil.inference.bundle_files import (
    ENCODER_FILE,
    HEAD_FILE,
    JSON_FILES,
    BundleFiles,
    checked_threshold,
    encoder_state_of,
    evidence_in,
    heads_of,
    of_today,
    reach_in,
    slide_thresholds_in,
    temperatures_in,
    tensors_of,
    usual_patches_in,
    wrong,
)
from distmil.inference.bundle_place import BUNDLE_VERSION, FIRST_VERSION, bundle_folder, find_bundle, home_of
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import DEFAULT_THRESHOLD
from distmil.models.network import Network
from distmil.models.regions import PatchEvidence
from distmil.storage.records import Record, encode_json
from distmil.storage.roots import resolve_root
from distmil.storage.store import RECORD_FILE, Committed, Store

_ODD = (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError)
_MESSAGE_LENGTH = 500


@dataclass(frozen=True)
class Bundle:
    """A trained model and everything that it needs to score a slide.

    ``distmil.load_bundle`` opens one, ``distmil.predict_slide`` scores a slide with it, ``save`` writes it.
    """

    run: str
    """Name of the training run."""
    config: Config = field(repr=False)
    """Classes, tiling, encoder and network; other sections have their defaults."""
    heads: tuple[Network, ...] = field(repr=False)
    """From embeddings to scores, in evaluation mode: one network, or those of several folds, whose scores are
    averaged."""
    encoder_state: dict[str, Tensor] | None = field(repr=False)
    """Weights of the encoder; None for the texture encoder, which has none."""
    patch_threshold: float = DEFAULT_THRESHOLD
    slide_thresholds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(READ_OUTS, DEFAULT_THRESHOLD))
    """Of every read-out."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Of the read-outs for which validation gave one; see ``calibrated``."""
    reach: float | None = None
    """How far training slides lie from their mean, which tells foreign slides; None where it is not known."""
    usual_patches: int | None = None
    """Patches that 99 % of the training slides do not exceed; None where it is not known."""
    evidence: PatchEvidence | None = None
    """Of a patch for a lesion, which the read-out ``regions`` needs; None where validation had nothing to fit it on."""
    digest: str = field(default="", repr=False)
    """Hash of everything that predictions depend on; empty before the bundle is saved."""
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Of the epoch whose weights these are."""
    format_version: int = BUNDLE_VERSION
    home: str | None = field(default=None, repr=False)
    """Root of the store that it was loaded from; None where it is in no store."""

    @property
    def embedding_dim(self) -> int:
        """Return the width of the embeddings that its networks take."""
        return self.heads[0].normaliser.mean.numel()

    @property
    def classes(self) -> list[str]:
        """List the class names in index order."""
        return self.config.cohort.classes

    def check_gives(self, slide_score: str) -> None:
        """Refuse a read-out that the bundle does not have. Raises: ConfigError."""
        if slide_score == "regions" and self.evidence is None:
            raise ConfigError(
                f"prediction.slide_score = regions: the bundle {self.run} has no evidence for it, which needs val "
                "slides of both classes; choose bag, max or topk_mean, or train with such slides"
            )

    def check_reads_slides(self) -> None:
        """Refuse a bundle of features that another tool made. Raises: ConfigError."""
        if self.config.tiling.strategy == "features":
            raise ConfigError(
                f"the bundle {self.run} scores features that another tool made by {self.config.features.encoder}, no "
                "slides; use the job predict with features.folder"
            )

    def save(self, folder: str | Path) -> str:
        """Write the bundle into a folder, which ``load_bundle`` opens.

        Args:
            folder: A folder, or its s3:// or gs:// URI: new, empty, or of an earlier bundle, which is replaced.

        Returns:
            The folder's absolute path or URI.

        Raises:
            BundleError: If the folder holds anything else.
            StorageError: If it cannot be written.
        """
        place = resolve_root(str(folder), key="folder")
        base, mark, options = place.partition("?") if "://" in place else (place, "", "")
        parent, _, name = base.rstrip("/").rpartition("/")
        store = Store(f"{parent or '/'}{mark}{options}")
        if store.is_local and Path(place).is_file():
            raise BundleError(f"folder = {str(folder)!r} is a file; give a new folder")
        others = sorted(set(store.names(name)) - {RECORD_FILE, HEAD_FILE, ENCODER_FILE, *JSON_FILES})
        if others:  # they would be deleted
            held = ", ".join(others[:3])
            raise BundleError(f"folder = {str(folder)!r} holds {held}, which no bundle has; give a new folder")
        _write(store, name, self)
        return place


def save_bundle(store: Store, bundle: Bundle) -> Record:
    """Commit a bundle under ``models/<run>/`` of a store. Raises: StorageError if it cannot be written."""
    return _write(store, bundle_folder(bundle.run), bundle)


def _write(store: Store, folder: str, bundle: Bundle) -> Record:
    config = {
        "format_version": BUNDLE_VERSION,
        "distmil": __version__,
        "run": bundle.run,
        "embedding_dim": bundle.embedding_dim,
        "config": bundle_values(bundle.config),
        **({"members": len(bundle.heads)} if len(bundle.heads) > 1 else {}),
    }
    labels = {
        "classes": bundle.classes,
        "patch_threshold": bundle.patch_threshold,
        "slide_thresholds": dict(bundle.slide_thresholds),
        "temperatures": dict(bundle.temperatures),
        "reach": bundle.reach,
        "usual_patches": bundle.usual_patches,
        "evidence": None if bundle.evidence is None else asdict(bundle.evidence),
    }
    files = {HEAD_FILE: save_safetensors(tensors_of(bundle.heads))}
    if bundle.encoder_state is not None:
        files[ENCODER_FILE] = save_safetensors(bundle.encoder_state)
    for name, values in zip(JSON_FILES, (config, labels, dict(bundle.metrics)), strict=True):
        files[name] = encode_json(values)
    parts = [store.write_part(folder, name, data, rows=1) for name, data in files.items()]
    record = Committed(store, folder, bundle.run).commit({"format_version": BUNDLE_VERSION}, parts=parts)
    store.keep_only(folder, {RECORD_FILE, *files})
    return record


def load_bundle(place: str, store: Store, *, key: str = "prediction.model") -> Bundle:
    """Load a bundle from its folder, or by its run's name under the store.

    Nothing is allocated by what a file claims: types, ranges and names are compared first, the network's shapes with
    those of the tensors that are there.

    Args:
        place: A folder, its URI, or a run's name.
        store: Where runs are looked up by name.
        key: What the user calls ``place``, for the messages.

    Raises:
        BundleError: If it is missing, unfinished, damaged, odd in any way, or of another format version.
    """
    found = find_bundle(place, store, key=key)
    try:
        record = found.read_record(RECORD_FILE)
        if record is None:
            raise BundleError(
                f"{found.root} is not a finished bundle: it has no readable {RECORD_FILE}; give the folder "
                "models/<run> of a finished run, or train the run to its end"
            )
        return _load(found, record)
    except (FileNotFoundError, StorageError, ConfigError, *_ODD) as error:
        reason = f"{type(error).__name__}: {error}"[:_MESSAGE_LENGTH]
        raise BundleError(f"{found.root} cannot be loaded: {reason}") from error


def _load(found: Store, record: Record) -> Bundle:
    """Load a committed bundle. Raises: BundleError, and what odd content raises."""
    files = BundleFiles(found, record)
    config, labels = files.json("config.json"), files.json("labels.json")
    if config["format_version"] != files.version:
        raise BundleError(
            f"{found.root} has format version {config['format_version']}, its record says {files.version}"
        )
    if not (isinstance(config["run"], str) and re.fullmatch(NAME_PATTERN, config["run"])):
        raise wrong("run", config["run"], "expected letters, digits, . _ - (128 at most)")
    if files.version > FIRST_VERSION:
        _check_keys(of_today(config["config"], files.version))
    built = build_config(_without_job_keys(of_today(config["config"], files.version)))
    if labels["classes"] != built.cohort.classes:
        raise wrong("labels.json: classes", labels["classes"], f"config.json says {built.cohort.classes}")
    metrics = files.json("metrics.json")
    if not isinstance(metrics, dict):
        raise wrong("metrics.json", metrics, "expected names and values")
    return Bundle(
        run=config["run"],
        config=built,
        heads=heads_of(built, config, files.tensors(HEAD_FILE)),
        encoder_state=encoder_state_of(built, files),
        patch_threshold=checked_threshold("patch_threshold", labels["patch_threshold"]),
        slide_thresholds=slide_thresholds_in(labels, files.version),
        temperatures=temperatures_in(labels),
        reach=reach_in(labels),
        usual_patches=usual_patches_in(labels),
        evidence=evidence_in(labels),
        digest=files.digest(),
        metrics=metrics,
        format_version=files.version,
        home=home_of(found),
    )


def _check_keys(values: Mapping[str, Any]) -> None:
    """Refuse a bundle that lacks a key: today's default would replace its own value. Raises: BundleError."""
    expected = {f"{section}.{key}" for section, keys in bundle_values(Config()).items() for key in keys}
    found = {f"{section}.{key}" for section, keys in values.items() for key in keys}
    if found != expected:
        lacks, has = sorted(expected - found), sorted(found - expected)
        raise BundleError(
            f"the bundle's config.json lacks {', '.join(lacks) or 'nothing'} and has {', '.join(has) or 'nothing'} "
            "besides: another version of distmil made it; use that one, or train the run again"
        )


def bundle_values(config: Config) -> dict[str, Any]:
    """Select the part of a configuration that a bundle carries, nested as in a YAML file.

    Keys that belong to a job, such as ``default_mpp`` and batch sizes, are left out.
    """
    full = config.model_dump()
    return _without_job_keys(
        {
            "cohort": {"classes": full["cohort"]["classes"]},
            "tiling": full["tiling"],
            "encoder": full["encoder"] | {"weights": config.encoder.weights_name},
            "features": full["features"],
            "model": full["model"],
            "bags": {key: value for key, value in full["bags"].items() if key.startswith("top_k")},
        }
    )


def _without_job_keys(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    own = per_job_keys()
    return {
        section: {key: value for key, value in keys.items() if f"{section}.{key}" not in own}
        for section, keys in values.items()
    }


def with_bundle(config: Config, bundle: Bundle) -> Config:
    """Lay the bundle's tiling, encoder, model and classes over a job's configuration.

    Args:
        config: The job's own.
        bundle: Its model.

    Raises:
        ConfigError: If the job sets one of the bundle's keys to something else.
    """
    theirs = {**bundle.config.flat(), "encoder.weights": bundle.config.encoder.weights_name}
    values = bundle_values(bundle.config)
    clashes = []
    for key, value in config.explicit().items():
        section, _, name = key.partition(".")
        if section not in values or name not in values[section] or (key, value) == ("encoder.weights", "auto"):
            continue
        if (config.encoder.weights_name if key == "encoder.weights" else value) != theirs[key]:
            clashes.append(f"{key} = {value!r}: the bundle {bundle.run} was trained with {theirs[key]!r}; leave it out")
    if clashes:
        raise ConfigError("\n".join(clashes))
    merged = config.model_dump()
    for section, own in values.items():
        merged[section] |= own
    return build_config(merged)
