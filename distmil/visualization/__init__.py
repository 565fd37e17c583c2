"""Heat maps, slide pictures and the tiling report."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.visualization.heatmap import render_map, score_grid
    from distmil.visualization.slide_maps import MAPS, draw_map

__all__ = ["MAPS", "draw_map", "render_map", "score_grid"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "heatmap": ["render_map", "score_grid"],
    "slide_maps": ["MAPS", "draw_map"],
})  # fmt: skip
