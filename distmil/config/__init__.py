"""The typed configuration, and how it is read from YAML and overrides."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.config.data import CohortConfig, EncoderConfig, StorageConfig, TilingConfig
    from distmil.config.jobs import PredictionConfig, SearchConfig, TrackingConfig
    from distmil.config.learning import BagsConfig, LabelsConfig, LossesConfig, ModelConfig, TrainingConfig
    from distmil.config.loading import build_config, load_config
    from distmil.config.root import Config, fingerprint

__all__ = [
    "BagsConfig",
    "CohortConfig",
    "Config",
    "EncoderConfig",
    "LabelsConfig",
    "LossesConfig",
    "ModelConfig",
    "PredictionConfig",
    "SearchConfig",
    "StorageConfig",
    "TilingConfig",
    "TrackingConfig",
    "TrainingConfig",
    "build_config",
    "fingerprint",
    "load_config",
]

lazy_exports(__name__)
