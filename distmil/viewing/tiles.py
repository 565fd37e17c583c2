"""A slide's tiles as JPEG: the slide's own where they fit, else read from the next finer level and reduced by area."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distmil.errors import SlideError
from distmil.slides import jpeg
from distmil.slides.image import SlideImage, resize
from distmil.slides.jpeg_tiles import LevelPlace, TileLevel, open_level, read_tile_table
from distmil.slides.reader import open_slide
from distmil.viewing.deep_zoom import DeepZoom

TILE_PX = 256
QUALITY = 85
_OWN_TILES_PX = range(128, 1025)
"""Edges of a slide's own tiles that a browser shows well."""
_MAX_BLOCK_PX = 2048
_FITS = 1e-6


class SlideTiles:
    """The tiles of one slide. Threads may share it: each read has a handle of its own."""

    def __init__(self, path: str, *, reader: str = "auto") -> None:
        self._path, self._reader = path, reader
        self._lock = threading.Lock()
        self._free: list[SlideImage] = []
        image = open_slide(path, reader=reader)
        self._free.append(image)
        self.size = image.size
        self._downsamples, self._level_sizes = image.downsamples, image.level_sizes
        own_px = self._own_tile_px()
        self.zoom = DeepZoom(self.size, own_px or TILE_PX)
        self._own = self._own_levels() if own_px else {}
        # the files close when no thread reads them any more, also where the viewer only forgets the slide
        self.close = weakref.finalize(self, _close, self._free, self._own)

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """Make a tile as JPEG without metadata; None where there is no such tile.

        Raises:
            SlideError: If its pixels cannot be read.
        """
        box = self.zoom.box(level, column, row)
        if box is None:
            return None
        own = self._own.get(level)
        if own is not None:
            factor = self.zoom.downsample(level)
            stored = own.stored(box.x * factor, box.y * factor, edge_px=self.zoom.tile_px)
            if stored is not None:
                return stored
        pixels = self.pixels(box.x, box.y, width=box.width, height=box.height, downsample=self.zoom.downsample(level))
        return jpeg.encode(pixels, quality=QUALITY)

    @property
    def own_levels(self) -> frozenset[int]:
        """List the levels whose whole tiles are the slide's own."""
        return frozenset(self._own)

    def pixels(self, x: int, y: int, *, width: int, height: int, downsample: float) -> NDArray[np.uint8]:
        """Read a region of a reduced slide as RGB, height x width x 3; white beyond the slide.

        It is read in blocks, which bounds the memory where the slide has no level that is nearly as coarse.

        Args:
            x: Left edge in reduced pixels.
            y: Top edge in reduced pixels.
            width: Reduced pixels.
            height: Reduced pixels.
            downsample: Level-0 pixels per reduced pixel, at least 1.

        Raises:
            SlideError: If the pixels cannot be read.
        """
        level = max(i for i, finer in enumerate(self._downsamples) if i == 0 or finer <= downsample * (1 + _FITS))
        factor = downsample / self._downsamples[level]
        step = max(1, int(_MAX_BLOCK_PX / factor))
        result = np.empty((height, width, 3), np.uint8)
        with self._handle() as image:
            for top in range(0, height, step):
                for left in range(0, width, step):
                    wide, high = min(step, width - left), min(step, height - top)
                    corner = round((x + left) * downsample), round((y + top) * downsample)
                    block = image.read(
                        *corner, level=level, width=max(1, round(wide * factor)), height=max(1, round(high * factor))
                    )
                    result[top : top + high, left : left + wide] = resize(block, (wide, high))
        return result

    @contextmanager
    def _handle(self) -> Iterator[SlideImage]:
        """Lend an open slide to one thread. Raises: SlideError if it cannot be opened again."""
        with self._lock:
            image = self._free.pop() if self._free else None
        image = image or open_slide(self._path, reader=self._reader, is_known=True)
        try:
            yield image
        finally:
            with self._lock:
                self._free.append(image)

    def _own_tile_px(self) -> int | None:
        """Find the edge of the slide's own JPEG tiles; None where they cannot be shown as they are."""
        table = read_tile_table(Path(self._path), self.size)
        if table is None or table.tile_size[0] != table.tile_size[1]:
            return None
        return table.tile_size[0] if table.tile_size[0] in _OWN_TILES_PX else None

    def _own_levels(self) -> dict[int, TileLevel]:
        """Open the levels whose tiles lie on the deep zoom's, by its level."""
        found: dict[int, TileLevel] = {}
        for level in range(self.zoom.num_levels):
            factor, wanted = self.zoom.downsample(level), self.zoom.level_size(level)
            for size in self._level_sizes:
                is_near = max(abs(size[0] - wanted[0]), abs(size[1] - wanted[1])) <= 1  # writers round down
                if is_near and level not in found:
                    with suppress(SlideError):  # without plain tiles the level's pixels are read instead
                        found[level] = open_level(self._path, LevelPlace(size, factor, kept_tiles=1), size=self.size)
        return found


def _close(free: list[SlideImage], own: dict[int, TileLevel]) -> None:
    for image in (*free, *own.values()):
        image.close()
