"""Slides to Parquet shards of patches."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.tiling.plan import TilingPlan, plan_tiling
    from distmil.tiling.shards import read_patches
    from distmil.tiling.tiler import SlideTiler, cut_patches
    from distmil.tiling.verification import find_damage

__all__ = ["SlideTiler", "TilingPlan", "cut_patches", "find_damage", "plan_tiling", "read_patches"]

lazy_exports(__name__)
