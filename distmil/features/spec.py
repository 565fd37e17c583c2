"""The encoder that other tools' features are of, as the store and a bundle know it."""

from distmil.config.features import FeaturesConfig
from distmil.encoders.registry import EncoderSpec

IMPORTED = "imported"
"""Stands for the digest of the weights, which nobody knows."""


def features_spec(config: FeaturesConfig) -> EncoderSpec:
    """Describe the encoder that made the features of a settled configuration."""
    return imported_spec(str(config.encoder), dimension=config.dimension or 0)


def imported_spec(name: str, *, dimension: int = 0) -> EncoderSpec:
    """Describe an encoder by its name; its folder in the store does not depend on the width."""
    return EncoderSpec(name, IMPORTED, dimension, None)
