"""Pixels of patches that are read from their slide again, as ``tiling.store = coords`` leaves them there."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import MissingSlide, ReplacedSlide
from distmil.slides.file_version import is_unchanged
from distmil.slides.image import SlideImage, resize
from distmil.storage.records import Record
from distmil.tiling.plan import Reading, open_reading
from distmil.tiling.shards import Decode

_REMEDY = "run the same command again, or `tile` with tiling.verify=repair, to tile it again"


def read_patch(image: SlideImage, reading: Reading, x: int, y: int, *, edge_px: int) -> NDArray[np.uint8]:
    """Read a patch of an open slide, RGB; its pixels hold until the next call. Raises: UnreadableSlide."""
    plan = reading.plan
    pixels = image.read(x, y, level=plan.level, width=plan.read_px, height=plan.read_px)
    return resize(pixels, (edge_px, edge_px))


def pixel_checksum(pixels: NDArray[np.uint8]) -> int:
    """Compute the CRC-32 of RGB pixels, row by row."""
    return zlib.crc32(pixels.tobytes())


def read_images(table: pa.Table, image: SlideImage, reading: Reading, *, edge_px: int) -> NDArray[np.uint8]:
    """Read the patches at the rows' places, N x H x W x 3. Raises: UnreadableSlide."""
    images = np.empty((table.num_rows, edge_px, edge_px, 3), np.uint8)
    for i, (x, y) in enumerate(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)):
        images[i] = read_patch(image, reading, x, y, edge_px=edge_px)
    return images


@contextmanager
def open_pixels(slide: Slide, patches: Record, config: TilingConfig) -> Iterator[Decode]:
    """Open a slide to read the pixels of its patches, each compared with its checksum.

    Args:
        slide: The slide.
        patches: Record of its tiling under ``tiling.store = coords``.
        config: How it was tiled.

    Yields:
        A function that reads rows of a patch shard, for one thread.

    Raises:
        MissingSlide: If the file is gone.
        ReplacedSlide: If the file, or a patch of it, is not what was tiled.
        UnreadableSlide: If pixels cannot be decoded.
    """
    _check_version(slide, patches)
    reading = Reading.from_json(patches.info["reading"])
    size = (patches.info["width_px"], patches.info["height_px"])
    with open_reading(slide, reading, reader=config.reader, size=size) as image:

        def read(table: pa.Table) -> NDArray[np.uint8]:
            images = read_images(table, image, reading, edge_px=config.patch_px)
            if (changed := first_changed(table, images)) is not None:
                raise ReplacedSlide(
                    f"the patch at x = {table['x'][changed]}, y = {table['y'][changed]} has other pixels than when the "
                    f"slide was tiled (tiling.store = coords reads them from the slide); {_REMEDY}"
                )
            return images

        yield read


def first_changed(table: pa.Table, images: NDArray[np.uint8]) -> int | None:
    """Find the first row whose checksum is not that of its pixels; None if there is none."""
    found = np.array([pixel_checksum(pixels) for pixels in images], np.uint32)
    changed = np.flatnonzero(found != table["checksum"].to_numpy())
    return int(changed[0]) if len(changed) else None


def _check_version(slide: Slide, patches: Record) -> None:
    """Compare a slide's file with the one that was tiled. Raises: MissingSlide, ReplacedSlide, OSError."""
    try:
        is_same = is_unchanged(patches.key["source"], slide.path)
    except FileNotFoundError as error:
        raise MissingSlide(
            "the slide's file is gone since it was tiled, and its pixels are nowhere else (tiling.store = coords); put "
            "it back, or tile with tiling.store=image"
        ) from error
    if not is_same:
        raise ReplacedSlide(f"the slide's file is another one than when it was tiled; {_REMEDY}")
