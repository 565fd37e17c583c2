"""The whole typed configuration, the keys that stay private, and fingerprints.

The sections are in ``distmil.config.data`` (from slides to embeddings), ``distmil.config.learning`` and
``distmil.config.jobs``. ``distmil.config.loading`` reads YAML and overrides and explains what is wrong with them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from distmil.config.data import CohortConfig, EncoderConfig, StorageConfig, TilingConfig
from distmil.config.features import FeaturesConfig
from distmil.config.jobs import PredictionConfig, SearchConfig, TrackingConfig
from distmil.config.learning import BagsConfig, LabelsConfig, LossesConfig, ModelConfig, TrainingConfig
from distmil.config.pretraining import PretrainingConfig
from distmil.config.section import Section
from distmil.config.shown import ExportConfig, ViewConfig
from distmil.encoders.catalog.tiling import tiling_for


class Config(Section):
    """The whole configuration."""

    cohort: CohortConfig = Field(default_factory=CohortConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    tiling: TilingConfig = Field(default_factory=TilingConfig)
    labels: LabelsConfig = Field(default_factory=LabelsConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    bags: BagsConfig = Field(default_factory=BagsConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    losses: LossesConfig = Field(default_factory=LossesConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    pretraining: PretrainingConfig = Field(default_factory=PretrainingConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    prediction: PredictionConfig = Field(default_factory=PredictionConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    view: ViewConfig = Field(default_factory=ViewConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _check_store(self) -> Self:
        if self.training.folds and self.encoder.trainable:
            raise ValueError(
                f"training.folds = {self.training.folds}: the networks of all folds share the bundle's one encoder, "
                "so it cannot be trained; set encoder.trainable=false, or training.folds=0"
            )
        if self.tiling.store == "coords" and self.encoder.trainable:
            raise ValueError(
                "tiling.store = 'coords': with encoder.trainable every step reads patches of many slides, so "
                "they must be stored; use image"
            )
        return self

    @model_validator(mode="after")
    def _tile_for_encoder(self) -> Self:
        """Let what is not said of the patches follow the encoder. Raises: ValueError if what is said does not fit."""
        tiling = self.tiling
        said = {key: value for key, value in dict(tiling).items() if key in tiling.model_fields_set}
        needed = tiling_for(self.encoder.name, said, tolerance=tiling.mpp_tolerance)
        if any(getattr(tiling, key) != value for key, value in needed.items()):
            values = dict(tiling) | needed
            followed = TilingConfig.model_construct(_fields_set=set(tiling.model_fields_set), **values)
            self.__dict__["tiling"] = followed  # the section is frozen, and this is still its making
        return self

    def explicit(self) -> dict[str, Any]:
        """Return the keys that the user set, dotted, with their values."""
        return {
            f"{name}.{key}": getattr(section, key)
            for name in type(self).model_fields
            if isinstance(section := getattr(self, name), Section)
            for key in section.model_fields_set
        }

    def flat(self) -> dict[str, Any]:
        """Return every key, dotted, with its value."""
        return {f"{name}.{key}": value for name, section in self.model_dump().items() for key, value in section.items()}

    def shareable(self) -> dict[str, Any]:
        """Return every key but the private ones, dotted, with its value; weights by their name alone."""
        values = {key: value for key, value in self.flat().items() if key not in PRIVATE_KEYS}
        return values | {"encoder.weights": self.encoder.weights_name}


PRIVATE_KEYS = ("cohort.manifest", "storage.root", "prediction.model", "tracking.uri", "features.folder",
                "features.export_folder", "export.out",
                "view.export", "view.drawn", "view.beside_model")  # fmt: skip
"""Keys whose values are paths. Paths name people, projects and machines, so that shared records leave them out."""


def fingerprint(values: Mapping[str, Any], *, length: int = 12) -> str:
    """Return a short hash of JSON-ready values that does not depend on their order."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
