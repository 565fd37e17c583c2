"""Score maps, slide pictures and the tiling report."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.visualization.heatmap import render
    from distmil.visualization.slide_maps import MAPS, SlideMaps

__all__ = ["MAPS", "SlideMaps", "render"]

lazy_exports(__name__)
