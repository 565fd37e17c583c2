"""A tiled JPEG TIFF without a detour: its own compressed tiles, each decoded once, or passed on as they are.

OpenSlide spends most of its time on laying tiles together in transparent layers; here a region is copied out of the
decoded tiles it touches. Pixels are those that OpenSlide gives, which ``agrees`` checks on each slide. Everything that
is not a plain tiled JPEG (other codecs, planes, depths; NDPI, MRXS and the like) is left to OpenSlide.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from distmil.defects import without_paths
from distmil.errors import MissingSlide, UnreadableSlide
from distmil.slides.image import SlideImage
from distmil.slides.jpeg import IS_RGB, IS_YCBCR, Header, decode, is_whole_scan, read_header
from distmil.slides.tiff_pages import every_page

logger = logging.getLogger(__name__)

REDUCTIONS = (2, 4, 8)
_MAX_KEPT_BYTES = 512 * 2**20
_MAX_TILE_PX = 4096
_JPEG = 7
_COLOURS = {2: IS_RGB, 6: IS_YCBCR}  # by Photometric


@dataclass(frozen=True)
class TileTable:
    """Where the tiles of one TIFF page stand in the file."""

    size: tuple[int, int]
    tile_size: tuple[int, int]
    offsets: NDArray[np.int64]
    """First byte of each tile, rows x columns."""
    byte_counts: NDArray[np.int64]
    """Bytes of each tile, rows x columns; 0 = the file has none."""
    tables: bytes
    colours: int


@dataclass(frozen=True)
class LevelPlace:
    """One level of a slide, as the tiling plan names it."""

    size: tuple[int, int]
    """Width and height of the level in its own pixels."""
    downsample: float
    """Level-0 pixels per pixel of it."""
    reduction: int = 1
    """Scale it down further by this: 1, 2, 4 or 8."""
    by_dct: bool = False
    """Scale down in the JPEG's DCT domain instead of by area."""
    kept_tiles: int = 64
    """Decoded tiles that are kept for the patches to come."""


def read_tile_table(path: Path, size: tuple[int, int]) -> TileTable | None:
    """Read where the tiles of the page of that size stand; None if no such page is plain tiled JPEG."""
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for page, _ in every_page(file)]
            found = [page for page in pages if (page.imagewidth, page.imagelength) == size and _is_plain(page)]
            return _table(found[0], file_bytes=path.stat().st_size) if len(found) == 1 else None
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 (tifffile raises almost anything on a damaged file; OpenSlide decides)
        logger.info("a slide's tiles are not read directly (%s)", without_paths(str(error), hidden=(str(path),)))
        return None


def _is_plain(page: Any) -> bool:
    """Test whether a page is 8-bit RGB or YCbCr in JPEG tiles, all channels in one."""
    return bool(
        page.is_tiled
        and page.compression == _JPEG
        and page.photometric in _COLOURS
        and page.planarconfig == 1
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.imagedepth == 1
        and 0 < page.tilewidth <= _MAX_TILE_PX
        and 0 < page.tilelength <= _MAX_TILE_PX
    )


def _table(page: Any, *, file_bytes: int) -> TileTable | None:
    width, height = page.imagewidth, page.imagelength
    columns, rows = -(-width // page.tilewidth), -(-height // page.tilelength)
    offsets, counts = (np.array(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    if len(offsets) != rows * columns or len(counts) != rows * columns:
        return None
    if (counts < 0).any() or (offsets < 0).any() or (offsets + counts > file_bytes).any():
        return None  # cut off: OpenSlide says what is wrong
    return TileTable(
        size=(width, height),
        tile_size=(page.tilewidth, page.tilelength),
        offsets=offsets.reshape(rows, columns),
        byte_counts=np.where(offsets == 0, 0, counts).reshape(rows, columns),
        tables=bytes(page.jpegtables or b""),
        colours=_COLOURS[page.photometric],
    )


class TileLevel(SlideImage):
    """One level of a slide, read tile by tile; a slide image with this level only."""

    reader = "rawtiles"

    def __init__(self, path: Path, place: LevelPlace, *, table: TileTable, size: tuple[int, int]) -> None:
        self._place = place
        self.table = table
        """Where its tiles stand in the file."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._header: Header | None = None
        width, height = table.tile_size
        self._full = np.empty((height, width, 3), np.uint8)
        reduced = (height // place.reduction, width // place.reduction, 3)
        num_kept = max(1, min(place.kept_tiles, _MAX_KEPT_BYTES // math.prod(reduced)))
        # Memory is taken once: fresh pages for every tile would cost as much as a third of its decoding.
        self._kept = np.empty((num_kept, *reduced), np.uint8)
        self._slots: dict[tuple[int, int], int] = {}
        self.size = size
        self.downsamples: tuple[float, ...] = (place.downsample * place.reduction,)
        wide, high = (-(-edge // place.reduction) for edge in place.size)
        self.level_sizes: tuple[tuple[int, int], ...] = ((wide, high),)
        self.mpp: float | None = None
        self.vendor = "tiff"

    def _read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region of the level after its reduction; the pixels hold until the next call."""
        left, top = round(x / self.downsamples[0]), round(y / self.downsamples[0])
        wide, high = (edge // self._place.reduction for edge in self.table.tile_size)
        first, last = left // wide, (left + width - 1) // wide
        if first == last and top // high == (top + height - 1) // high:
            tile = self._tile(top // high, first)
            row, column = top - top // high * high, left - first * wide
            return tile[row : row + height, column : column + width]
        region = np.empty((height, width, 3), np.uint8)
        for i in range(top // high, (top + height - 1) // high + 1):
            above, below = max(top, i * high), min(top + height, (i + 1) * high)
            for j in range(first, last + 1):
                before, after = max(left, j * wide), min(left + width, (j + 1) * wide)
                part = self._tile(i, j)[above - i * high : below - i * high, before - j * wide : after - j * wide]
                region[above - top : below - top, before - left : after - left] = part
        return region

    def stored(self, x: int, y: int, *, edge_px: int) -> bytes | None:
        """Find the tile that is exactly the square at level-0 (x, y), as a JPEG without metadata.

        Returns:
            None where there is no such tile, where part of it lies beyond the image, and where it is not a plain
            baseline JPEG that ends as it should; then its pixels are to be read.
        """
        left, top = round(x / self.downsamples[0]), round(y / self.downsamples[0])
        if self._place.reduction != 1 or self.table.tile_size != (edge_px, edge_px):
            return None
        (row, above), (column, before) = divmod(top, edge_px), divmod(left, edge_px)
        width, height = self.table.size
        is_inside = min(left, top) >= 0 and left + edge_px <= width and top + edge_px <= height
        if above or before or not is_inside or self.table.byte_counts[row, column] == 0:
            return None
        data = self._compressed(row, column)
        try:
            header = self._header_of(data)
        except ValueError:
            return None
        frame = header.frame
        if not frame.is_baseline or (frame.width, frame.height, frame.components) != (edge_px, edge_px, 3):
            return None
        return header.complete(data) if is_whole_scan(data, start=len(header.stored)) else None

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _compressed(self, row: int, column: int) -> bytes:
        """Read a tile as the file holds it. Raises: UnreadableSlide if the file ends before it, OSError."""
        count = int(self.table.byte_counts[row, column])
        data = os.pread(self._file, count, int(self.table.offsets[row, column]))
        if len(data) != count:
            raise UnreadableSlide(f"the slide's file ends inside its tile {column}, {row}")
        return data

    def _header_of(self, data: bytes) -> Header:
        """Parse a tile's header; the headers of one slide are mostly the same bytes."""
        if self._header is None or not data.startswith(self._header.stored):
            self._header = read_header(data, tables=self.table.tables, colours=self.table.colours)
        return self._header

    def _tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """Decode a tile after reduction, white beyond the image and where the file has nothing."""
        slot = self._slots.get((row, column))
        if slot is None:
            slot = len(self._slots)
            if slot == len(self._kept):
                slot = self._slots.pop(next(iter(self._slots)))  # the first in is the first out
            self._decode(row, column, out=self._kept[slot])
            self._slots[row, column] = slot
        return np.asarray(self._kept[slot])

    def _decode(self, row: int, column: int, *, out: NDArray[np.uint8]) -> None:
        table, reduction = self.table, self._place.reduction
        rows, columns = table.offsets.shape
        if not (0 <= row < rows and 0 <= column < columns) or table.byte_counts[row, column] == 0:
            out[:] = 255
            return
        data = self._compressed(row, column)
        is_averaged = reduction > 1 and not self._place.by_dct
        tile = self._full if is_averaged else out
        try:
            header = self._header_of(data)
            if (header.frame.width, header.frame.height) != table.tile_size:
                raise ValueError(f"it is {header.frame.width} x {header.frame.height} px")
            decode(header.complete(data), reduced_to=(tile.shape[1], tile.shape[0]), out=tile)
        except ValueError as error:
            raise UnreadableSlide(f"the slide is damaged in tile {column}, {row} of the level: {error}") from error
        scale = 1 if is_averaged else reduction
        wide, high = (-(-edge // scale) for edge in table.size)
        top, left = row * tile.shape[0], column * tile.shape[1]
        tile[max(0, high - top) :] = 255
        tile[:, max(0, wide - left) :] = 255
        if is_averaged:
            cv2.resize(tile, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_AREA)


def open_level(path: str | Path, place: LevelPlace, *, size: tuple[int, int]) -> TileLevel:
    """Open one level of a slide by its tiles.

    Args:
        path: The slide.
        place: The level.
        size: The slide's level-0 width and height.

    Raises:
        MissingSlide: If the file does not exist.
        UnreadableSlide: If the file has no such level in plain JPEG tiles.
    """
    path = Path(path)
    if not path.exists():
        raise MissingSlide("the slide's file is not there")
    table = read_tile_table(path, place.size)
    if table is None:
        raise UnreadableSlide(f"the slide has no level of {place.size[0]} x {place.size[1]} px in JPEG tiles")
    return TileLevel(path, place, table=table, size=size)


def can_reduce(table: TileTable, factor: int) -> bool:
    """Test whether whole tiles shrink to whole tiles."""
    return factor in REDUCTIONS and all(edge % factor == 0 for edge in table.tile_size)


def agrees(
    tiles: SlideImage, image: SlideImage, *, level: int, places: Sequence[tuple[int, int]], edge_px: int
) -> bool:
    """Test whether both readers give the same pixels at these level-0 places.

    At an integer downsample they are the same to the last bit; else OpenSlide interpolates between the level's pixels,
    and only the picture is compared.
    """
    downsample = image.downsamples[level]
    for x, y in places:
        one = tiles.read(x, y, level=0, width=edge_px, height=edge_px)
        two = image.read(x, y, level=level, width=edge_px, height=edge_px)
        if downsample == round(downsample) and x % downsample == 0 and y % downsample == 0:
            is_same = np.array_equal(one, two)
        else:
            small = [cv2.resize(part, (8, 8), interpolation=cv2.INTER_AREA).astype(np.int16) for part in (one, two)]
            is_same = bool(np.abs(small[0] - small[1]).mean() < 6)
        if not is_same:
            return False
    return True
