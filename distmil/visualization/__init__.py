"""Heat maps, slide pictures and the tiling report."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.visualization.heatmap import render_map, score_grid
    from distmil.visualization.slide_maps import MAPS, draw_map

__all__ = ["MAPS", "draw_map", "render_map", "score_grid"]

lazy_exports(__name__)
