"""An encoder's network computed faster, by torch or OpenVINO, only where that gives the same embeddings."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.encoders.engines.choice import EngineChoice, model_file
    from distmil.encoders.engines.selection import Selection, build_engine, select_engine
    from distmil.encoders.engines.stored import StoredEngine, load_engine, sample_patches, sampled_shards

__all__ = [
    "EngineChoice",
    "Selection",
    "StoredEngine",
    "build_engine",
    "load_engine",
    "model_file",
    "sample_patches",
    "sampled_shards",
    "select_engine",
]

lazy_exports(__name__)
