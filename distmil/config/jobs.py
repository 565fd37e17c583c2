"""The typed configuration of jobs: the search, predictions, and the record of runs."""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from distmil.config.section import NAME_PATTERN, Section


def _default_space() -> dict[str, Any]:
    return {
        "bags.top_k": {"choice": [1, 2, 4, 8, 16, 32]},
        **{f"losses.{name}": {"loguniform": [0.1, 10.0]} for name in ("patch", "bag", "topk", "attention")},
    }


class SearchConfig(Section):
    """What `tune` searches, and how it confirms the result."""

    run: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the search; the same name continues where it stopped. Default: made from the configuration and cohort."""
    space: dict[str, Any] = Field(default_factory=_default_space)
    """The search space, by dotted key of bags, model, losses or training: {choice: [...]} or [...], {uniform: [a, b]},
    {loguniform: [a, b]}, or {int: [a, b]} with both ends."""
    trials: int = Field(default=24, ge=1, le=100_000)
    """Number of trials, the first with the default values. A finished search continues if this number is raised. A
    grid, or a space with fewer settings, is searched completely."""
    algorithm: Literal["random", "optuna", "grid"] = "random"
    """How trials are drawn. optuna: by its TPE (needs the extra `optuna`); grid: every combination of choices."""
    metric: Literal["patch_ap_probability", "slide_auc", "slide_ap", "loss"] = "patch_ap_probability"
    """Metric that compares trials, on slides outside their training; slide_auc where no patch label is positive."""
    stopping: Literal["asha", "none"] = "asha"
    """asha: stop a trial early where others were better at the same epoch; none: train all to the end."""
    grace_epochs: int = Field(default=5, ge=1, le=100_000)
    """Epochs before a trial may be stopped early."""
    reduction: float = Field(default=3.0, gt=1, le=100)
    """ASHA's reduction factor: of this many trials at a rung, the best one continues."""
    folds: int = Field(default=0, ge=0, le=100)
    """Cross-validation folds of train, by patient and class, on which every trial of one worker is trained and
    evaluated, so that val stays unseen; 0: trials are evaluated on val."""
    repeats: int = Field(default=5, ge=0, le=1000)
    """Number of fresh seeds with which the best and the default values are trained and compared at the end; 0: none."""
    ablations: bool = True
    """Also train the best values without each of their losses in turn, with as many seeds."""
    concurrent: int | None = Field(default=None, ge=1, le=10_000)
    """Most trials at once; null: as many as fit on the cluster's CPUs or GPUs."""
    gpus_per_trial: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that a trial of one worker takes, where there are GPUs."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """How often a trial may be restarted after its process or node was lost, or its storage failed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds == 1 or self.repeats == 1:
            name = "folds" if self.folds == 1 else "repeats"
            raise ValueError(f"search.{name} = 1: expected 0, or at least 2")
        if not self.space:
            raise ValueError("search.space = {}: expected at least one key")
        return self


class PredictionConfig(Section):
    """Predictions, in `predict`, `evaluate` and at the end of `train`."""

    model: str | None = None
    """Folder of a bundle, or the name of a run under the storage root."""
    run: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the output. Default: in `train` the run's name; else made from the bundle's folder, the bundle and the
    slides. A name that already has predictions of another bundle or of other slides is refused."""
    split: Literal["train", "val", "test"] | None = None
    """Slides to predict; null: all in `predict`; in `train` and `evaluate` all outside train."""
    slide_score: Literal["bag", "max", "topk_mean", "regions"] = "bag"
    """Read-out that becomes the slide's probability. bag: C1 of the pooled slide; max, topk_mean: of the fused patch
    scores; regions: neighbouring patches that are high together, for slides of unlike sizes and small lesions; it needs
    validation slides of both classes."""
    calibrated: bool = False
    """Divide the log-odds of the slide's probability and of its threshold by the temperature that validation gave. The
    order and the classes of slides stay, and the read-outs are written as they are."""
    maps: bool = True
    """Draw the three maps of each slide, and a sheet of all."""
    map_px: int = Field(default=1024, ge=64, le=8192)
    """Longer edge of a map in pixels."""
    colours: Literal["jet", "viridis"] = "jet"
    """Colours of the maps: `jet`, blue 0 to red 1, or `viridis`, blue 0 to yellow 1, for colour-blind eyes too."""


class TrackingConfig(Section):
    """The record of runs in MLflow."""

    uri: str | None = None
    """MLflow tracking URI; default: SQLite under a local storage root, else under ~/.distmil; `none`: no record."""
    experiment: str = Field(default="distmil", min_length=1, max_length=200)
    """MLflow experiment."""
    dataset: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the slides in MLflow, beside their digest; default: `cohort`, for a file may be named after a person."""
    registered_model: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name in MLflow's registry under which `train` registers its network as a new version; null: not registered."""
    alias: str = Field(default="latest", min_length=1, max_length=128)
    """Alias of that version in the registry; `latest` is MLflow's own name for the newest."""
    maps: bool = True
    """Record the map sheets of at most eight slides, the wrong ones first, and a table of the slides' scores. They show
    tissue and the slides' ids."""
    system_metrics: bool = False
    """Record CPUs, memory, disk, network and NVIDIA GPUs (needs nvidia-ml-py) of the driver's machine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch(r"(?![vV]\d+$)[A-Za-z0-9_-]+", self.alias):
            raise ValueError(
                f"tracking.alias = {self.alias!r}: expected letters, digits, _ and -, and not v with a number, "
                "which MLflow keeps for versions"
            )
        return self
