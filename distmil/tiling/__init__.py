"""Slides to Parquet shards of patches."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.tiling.plan import Survey, survey
    from distmil.tiling.shards import read_patches
    from distmil.tiling.tiler import SlideTiler, cut_patches, tile_slide
    from distmil.tiling.verification import find_damage

__all__ = ["SlideTiler", "Survey", "cut_patches", "find_damage", "read_patches", "survey", "tile_slide"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "plan": ["Survey", "survey"],
    "shards": ["read_patches"],
    "tiler": ["SlideTiler", "cut_patches", "tile_slide"],
    "verification": ["find_damage"],
})  # fmt: skip
