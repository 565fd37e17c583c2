"""The encoder that other tools' features are of, as the store and a bundle know it."""

from distmil.config.features import FeaturesConfig
from distmil.encoders.registry import EncoderSpec

IMPORTED = "imported"
"""Stands for the digest of the weights, which nobody knows."""


def features_spec(config: FeaturesConfig) -> EncoderSpec:
    """Describe the encoder that made the features of a settled configuration."""
    return EncoderSpec(str(config.encoder), IMPORTED, config.dimension or 0, None)
