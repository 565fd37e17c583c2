"""The tiles of a deep zoom: levels that halve, level 0 the coarsest, which is one tile.

Source: the geometry of OpenSeadragon's TileSource. A started pixel of a level counts.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Box:
    """A tile in pixels of its level."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class DeepZoom:
    """The levels of a slide and their tiles."""

    size: tuple[int, int]
    """Slide (width, height) in level-0 pixels of the slide."""
    tile_px: int
    """Edge of a tile; the last tiles of a row or column may be smaller."""

    @cached_property
    def num_levels(self) -> int:
        """Count the levels, the last of which has the slide's own pixels."""
        halvings = 0
        while -(-max(self.size) // 2**halvings) > self.tile_px:
            halvings += 1
        return halvings + 1

    def downsample(self, level: int) -> int:
        """Return the slide's pixels per pixel of a level."""
        return int(2 ** (self.num_levels - 1 - level))

    def level_size(self, level: int) -> tuple[int, int]:
        """Return (width, height) of a level in its own pixels."""
        factor = self.downsample(level)
        return -(-self.size[0] // factor), -(-self.size[1] // factor)

    def num_tiles(self, level: int) -> tuple[int, int]:
        """Return the (columns, rows) of tiles of a level."""
        width, height = self.level_size(level)
        return -(-width // self.tile_px), -(-height // self.tile_px)

    def box(self, level: int, column: int, row: int) -> Box | None:
        """Find a tile; None where there is no such tile."""
        if not 0 <= level < self.num_levels:
            return None
        columns, rows = self.num_tiles(level)
        if not (0 <= column < columns and 0 <= row < rows):
            return None
        width, height = self.level_size(level)
        x, y = column * self.tile_px, row * self.tile_px
        return Box(x, y, min(self.tile_px, width - x), min(self.tile_px, height - y))
