"""Patches to embeddings."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.encoders.catalog.own import OwnEncoder
    from distmil.encoders.embedder import SlideEmbedder, embed_patches
    from distmil.encoders.registry import Encoder, EncoderSpec, load_encoder, prepare_encoder

__all__ = ["Encoder", "EncoderSpec", "OwnEncoder", "SlideEmbedder", "embed_patches", "load_encoder", "prepare_encoder"]

lazy_exports(__name__)
