"""The typed configuration: every key with its unit, bounds and meaning, and nothing else.

Its sections from slides to embeddings are in ``distmil.config.data``, those of learning in ``distmil.config.learning``.
``distmil.config.loading`` reads it from YAML and overrides and explains what is wrong with them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from distmil.config.data import CohortConfig, EncoderConfig, LabelsConfig, StorageConfig, TilingConfig
from distmil.config.learning import BagsConfig, LossesConfig, ModelConfig, TrainingConfig
from distmil.config.section import NAME_PATTERN, Section


def _default_space() -> dict[str, Any]:
    return {
        "bags.top_k": {"choice": [1, 2, 4, 8, 16, 32]},
        **{f"losses.{name}": {"loguniform": [0.1, 10.0]} for name in ("patch", "bag", "topk", "attention")},
    }


class SearchConfig(Section):
    """What `tune` searches, and how it makes sure of the result."""

    run: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the search; the same name goes on where it stopped. Default: made from the configuration and cohort."""
    space: dict[str, Any] = Field(default_factory=_default_space)
    """What is searched, by dotted key of bags, model, losses or training: {choice: [...]} or [...], {uniform: [a, b]},
    {loguniform: [a, b]}, or {int: [a, b]} with both ends."""
    trials: int = Field(default=24, ge=1, le=100_000)
    """Trials, the first of which has the default values; a finished search goes on with more. A space with fewer
    settings is gone through whole, and so is a grid."""
    algorithm: Literal["random", "optuna", "grid"] = "random"
    """How trials are drawn: at random, by Optuna's TPE (the extra `optuna`), or every combination of choices."""
    metric: Literal["patch_ap_probability", "slide_auc", "slide_ap", "loss"] = "patch_ap_probability"
    """What trials are compared by, on slides that they do not train on; slide_auc where no patch label is positive."""
    stopping: Literal["asha", "none"] = "asha"
    """asha: end trials early that are behind at the same epoch; none: train all to the end."""
    grace_epochs: int = Field(default=5, ge=1, le=100_000)
    """Epochs before a trial may be ended early."""
    reduction: float = Field(default=3.0, gt=1, le=100)
    """At each of ASHA's rungs the best of so many go on."""
    folds: int = Field(default=0, ge=0, le=100)
    """Folds of train, by patient and class, that every trial of one worker is trained and judged on, so that val stays
    unseen; 0: trials are judged on val."""
    repeats: int = Field(default=5, ge=0, le=1000)
    """Seeds with which the best and the default values are trained again at the end and compared; 0: not at all."""
    ablations: bool = True
    """Train the best values without each of their losses as well, as often."""
    concurrent: int | None = Field(default=None, ge=1, le=10_000)
    """Most trials at once; null: as many as the cluster's CPUs or GPUs carry."""
    gpus_per_trial: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that a trial of one worker takes, where there are GPUs."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """How often a trial may be started again after its process or node was lost, or its storage failed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds == 1 or self.repeats == 1:
            name = "folds" if self.folds == 1 else "repeats"
            raise ValueError(f"search.{name} = 1: expected 0, or at least 2")
        if not self.space:
            raise ValueError("search.space = {}: expected at least one key")
        return self


class PredictionConfig(Section):
    """What `predict`, `evaluate` and the end of `train` do."""

    model: str | None = None
    """Folder of a bundle, or the name of a run under the storage root."""
    run: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the output; default: the run's own in `train`; else made from the bundle's folder, the bundle and the
    slides. A name that holds the predictions of another bundle or of other slides is refused."""
    split: Literal["train", "val", "test"] | None = None
    """Slides to judge; null: all in `predict`; in `train` and `evaluate` all outside train."""
    slide_score: Literal["bag", "max", "topk_mean"] = "bag"
    """Read-out that becomes the slide's probability."""
    maps: bool = True
    """Draw the three maps of each slide."""
    map_px: int = Field(default=1024, ge=64, le=8192)
    """Longer edge of a map in pixels."""


class TrackingConfig(Section):
    """The record of runs."""

    uri: str | None = None
    """MLflow tracking URI; default: SQLite under a local storage root, else under ~/.distmil; `none`: no record."""
    experiment: str = Field(default="distmil", min_length=1, max_length=200)
    """MLflow experiment."""
    registered_model: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name in MLflow's registry under which `train` registers its network as a new version; null: not registered."""
    alias: str = Field(default="latest", min_length=1, max_length=128)
    """What that version is called in the registry; `latest` is MLflow's own name for the newest."""
    maps: bool = True
    """Record some maps of held-out slides. They show tissue, and the slides' ids are on them."""
    system_metrics: bool = False
    """Record processors, memory, disk, network and NVIDIA GPUs (with nvidia-ml-py) of the driver's machine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch(r"(?![vV]\d+$)[A-Za-z0-9_-]+", self.alias):
            raise ValueError(
                f"tracking.alias = {self.alias!r}: expected letters, digits, _ and -; v and a number is MLflow's own"
            )
        return self


class Config(Section):
    """The whole configuration."""

    cohort: CohortConfig = Field(default_factory=CohortConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    tiling: TilingConfig = Field(default_factory=TilingConfig)
    labels: LabelsConfig = Field(default_factory=LabelsConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    bags: BagsConfig = Field(default_factory=BagsConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    losses: LossesConfig = Field(default_factory=LossesConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    prediction: PredictionConfig = Field(default_factory=PredictionConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def explicit(self) -> dict[str, Any]:
        """Return the keys that the user gave, dotted, with their values."""
        return {
            f"{name}.{key}": getattr(section, key)
            for name in type(self).model_fields
            if isinstance(section := getattr(self, name), Section)
            for key in section.model_fields_set
        }

    def flat(self) -> dict[str, Any]:
        """Return every key, dotted, with its value."""
        return {f"{name}.{key}": value for name, section in self.model_dump().items() for key, value in section.items()}


PRIVATE_KEYS = ("cohort.manifest", "storage.root", "prediction.model", "tracking.uri")
"""Keys of paths. They name people, projects and machines, and stand in no record that may be shared."""


def fingerprint(values: Mapping[str, Any], *, length: int = 12) -> str:
    """Return a short hash of JSON-ready values that does not depend on their order."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
