"""A slide's tiles as JPEG: the slide's own where they fit, else read from the next finer level and reduced.

A level of plain JPEG tiles is decoded tile by tile, at up to an eighth of its size in the DCT domain; others are read
by OpenSlide and reduced by area. Levels that are far coarser than all of the file's come from the picture of the slide
that is kept beside its patches: else the first view of a slide without levels would decode all of it.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distmil.slides import jpeg
from distmil.slides.image import SlideImage, resize
from distmil.slides.jpeg_tiles import REDUCTIONS, LevelPlace, TileLevel, TileTable, can_reduce, read_tile_table
from distmil.slides.reader import open_slide
from distmil.viewing.deep_zoom import Box, DeepZoom

TILE_PX = 256
QUALITY = 85
_OWN_TILES_PX = range(128, 1025)
"""Edges of a slide's own tiles that a browser shows well."""
_MAX_BLOCK_PX = 2048
_MAX_KEPT_BYTES = 32 * 2**20
"""Of the tiles that were made of a slide."""
_MAX_GAP = 8
"""Reduction of the file's pixels beyond which the kept picture is shown."""
_FITS = 1e-6


class SlideTiles:
    """The tiles of one slide. Threads may share it: each read has a handle of its own."""

    def __init__(
        self, path: str, *, reader: str = "auto", picture: Callable[[], NDArray[np.uint8] | None] | None = None
    ) -> None:
        """Open the slide.

        Args:
            path: The slide.
            reader: ``tiling.reader``.
            picture: Gives a small picture of the whole slide, RGB, if there is one.

        Raises:
            SlideError: If it cannot be opened.
        """
        self._path, self._reader, self._get_picture = path, reader, picture
        self._lock = threading.Lock()
        self._free: list[SlideImage] = []
        image = open_slide(path, reader=reader)
        self._free.append(image)
        self.size = image.size
        self._downsamples, self._level_sizes = image.downsamples, image.level_sizes
        own_px = self._own_tile_px()
        self.zoom = DeepZoom(self.size, own_px or TILE_PX)
        self._own = self._own_levels() if own_px else {}
        self._reduced: dict[tuple[int, int], list[TileLevel]] = {}
        self._made: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._made_bytes = 0
        # the files close when no thread reads them any more, also where the viewer only forgets the slide
        self.close = weakref.finalize(self, _close, self._free, self._own, self._reduced)

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
        return self._kept((level, column, row)) or self._keep((level, column, row), self._make(level, box))

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
        level = self._level_for(downsample)
        with self._handle() as image:
            return _read(image, Box(x, y, width, height), level=level, downsample=downsample)

    def _level_for(self, downsample: float) -> int:
        """Choose the file's level that is the next finer."""
        return max(i for i, finer in enumerate(self._downsamples) if i == 0 or finer <= downsample * (1 + _FITS))

    def _make(self, level: int, box: Box) -> bytes:
        """Make a tile that the file does not have. Raises: SlideError."""
        downsample = self.zoom.downsample(level)
        is_far = downsample / self._downsamples[self._level_for(downsample)] > _MAX_GAP
        if is_far and self._picture is not None and max(self._picture.shape) >= max(self.zoom.level_size(level)):
            whole = resize(self._picture, self.zoom.level_size(level))
            pixels = whole[box.y : box.y + box.height, box.x : box.x + box.width]
        elif finer := next((i for i in range(level, self.zoom.num_levels) if i in self._own), None):
            with self._tile_level(finer, 2 ** (finer - level)) as image:
                pixels = _read(image, box, level=0, downsample=downsample)
        else:
            pixels = self.pixels(box.x, box.y, width=box.width, height=box.height, downsample=downsample)
        return jpeg.encode(pixels, quality=QUALITY)

    @cached_property
    def _picture(self) -> NDArray[np.uint8] | None:
        return self._get_picture() if self._get_picture else None

    def _kept(self, place: tuple[int, int, int]) -> bytes | None:
        """Find a tile that was made before."""
        with self._lock:
            if place in self._made:
                self._made.move_to_end(place)
            return self._made.get(place)

    def _keep(self, place: tuple[int, int, int], tile: bytes) -> bytes:
        """Keep a tile, and forget those that were not asked for longest."""
        with self._lock:
            self._made_bytes += len(tile) - len(self._made.pop(place, b""))
            self._made[place] = tile
            while self._made_bytes > _MAX_KEPT_BYTES:
                self._made_bytes -= len(self._made.popitem(last=False)[1])
        return tile

    @contextmanager
    def _tile_level(self, level: int, gap: int) -> Iterator[TileLevel]:
        """Lend one of the file's levels, as far reduced in the DCT domain as it can be, to one thread."""
        own = self._own[level]
        table = own.table
        reduction = max((by for by in REDUCTIONS if gap % by == 0 and can_reduce(table, by)), default=1)
        with self._lock:
            free = self._reduced.setdefault((level, reduction), [])
            image = free.pop() if free else None
        image = image or _open(self._path, table, self.zoom.downsample(level), reduction=reduction, size=self.size)
        try:
            yield image
        finally:
            with self._lock:
                free.append(image)

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
                    table = read_tile_table(Path(self._path), size)
                    if table:  # without plain tiles the level's pixels are read instead
                        found[level] = _open(self._path, table, factor, reduction=1, size=self.size)
        return found


def _open(path: str, table: TileTable, downsample: int, *, reduction: int, size: tuple[int, int]) -> TileLevel:
    place = LevelPlace(table.size, downsample, reduction, by_dct=True, kept_tiles=1)
    return TileLevel(Path(path), place, table=table, size=size)


def _read(image: SlideImage, box: Box, *, level: int, downsample: float) -> NDArray[np.uint8]:
    """Read a box of a reduced slide from a finer level in blocks, and reduce it by area.

    Args:
        image: The slide, or one level of it.
        box: In reduced pixels.
        level: Level of the image.
        downsample: Level-0 pixels per reduced pixel.

    Raises:
        SlideError: If the pixels cannot be read.
    """
    factor = downsample / image.downsamples[level]
    step = max(1, int(_MAX_BLOCK_PX / factor))
    result = np.empty((box.height, box.width, 3), np.uint8)
    for top in range(0, box.height, step):
        for left in range(0, box.width, step):
            wide, high = min(step, box.width - left), min(step, box.height - top)
            corner = round((box.x + left) * downsample), round((box.y + top) * downsample)
            size = {"width": max(1, round(wide * factor)), "height": max(1, round(high * factor))}
            result[top : top + high, left : left + wide] = resize(
                image.read(*corner, level=level, **size), (wide, high)
            )
    return result


def _close(free: list[SlideImage], own: dict[int, TileLevel], reduced: dict[tuple[int, int], list[TileLevel]]) -> None:
    for image in (*free, *own.values(), *(image for images in reduced.values() for image in images)):
        image.close()
