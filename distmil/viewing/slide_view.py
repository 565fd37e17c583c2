"""What the viewer shows of one slide, all from its saved predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distmil.exporting.slide_export import SlideExport
from distmil.slides import jpeg
from distmil.slides.image import resize
from distmil.viewing.drawing import Drawing, to_page
from distmil.viewing.maps import ValueMaps
from distmil.viewing.tiles import QUALITY, SlideTiles

SCORES = ("fused", "probability", "attention", "agreement")
"""The maps, in the viewer's order."""
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class Saved:
    """What the page is told of a drawing that was saved."""

    version: int
    manifest: str
    """The manifest that names it: its folder's and its own name."""
    doubts: list[str]
    """What the next training will not accept of it."""


@dataclass(frozen=True)
class SlideView:
    """One slide: its tiles, maps, outlines and top patches."""

    export: SlideExport
    """Its frame is the whole slide."""
    open_tiles: Callable[[], SlideTiles]
    """Opens the slide when a tile is first asked for. Raises: SlideError."""
    drawing: Callable[[], Drawing]
    """Reads what people drew. Raises: SlideError, OSError."""
    words: str
    """The prediction in a sentence."""
    num_top: int = 24
    save: Callable[[bytes, int], Saved] | None = None
    """Saves what the page sends over a version; None where nothing can be drawn."""

    @cached_property
    def tiles(self) -> SlideTiles:
        """Open the slide. Raises: SlideError."""
        return self.open_tiles()

    @cached_property
    def maps(self) -> ValueMaps:
        """Return the maps of the scores."""
        return ValueMaps(self.export.patches)

    def describe(self) -> dict[str, Any]:
        """Describe the slide: deep zoom, maps, top patches, words. Raises: SlideError."""
        zoom, maps = self.tiles.zoom, self.maps
        return {
            "slide_id": self.export.slide_id,
            "width": zoom.size[0],
            "height": zoom.size[1],
            "tile_px": zoom.tile_px,
            "num_levels": zoom.num_levels,
            "mpp": self.export.mpp,
            "words": self.words,
            "threshold": self.export.threshold,
            "num_patches": len(self.export.patches),
            "num_abnormal": int(self.export.patches.is_abnormal(self.export.threshold).sum()),
            "map": {"x": maps.corner[0], "y": maps.corner[1], "step": maps.step, "width": maps.size[0],
                    "height": maps.size[1], "scores": list(SCORES)},
            "top": self.top(),
        }  # fmt: skip

    def top(self) -> list[dict[str, Any]]:
        """List the patches with the highest fused score, row by row among equals."""
        patches = self.export.patches
        order = np.lexsort((patches.x_N, patches.y_N, -patches.scores["fused"]))[: self.num_top]
        return [
            {"x": int(patches.x_N[i]), "y": int(patches.y_N[i]), "extent_px": int(patches.extent_N[i]),
             **{name: round(float(patches.scores[name][i]), 4) for name in SCORES}}
            for i in order
        ]  # fmt: skip

    def thumbnail(self, rank: int) -> bytes | None:
        """Make a top patch as JPEG; None where there is no such rank. Raises: SlideError."""
        top = self.top()
        if not 0 <= rank < len(top):
            return None
        x, y, edge = (top[rank][name] for name in ("x", "y", "extent_px"))
        px = min(THUMBNAIL_PX, edge)
        scale = edge / px
        pixels = self.tiles.pixels(round(x / scale), round(y / scale), width=px, height=px, downsample=scale)
        return jpeg.encode(resize(pixels, (px, px)), quality=QUALITY)

    def regions(self) -> bytes:
        """Write the regions above the threshold as GeoJSON in level-0 pixels."""
        return self.export.regions_geojson()

    def outlines(self) -> bytes:
        """Write what people drew as GeoJSON in level-0 pixels. Raises: SlideError, OSError."""
        return to_page(self.drawing())
