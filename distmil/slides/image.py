"""An open slide, whatever holds its pixels."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distmil.defects import without_paths
from distmil.errors import ConfigError
from distmil.slides.checks import Resolution

THUMBNAIL_PX = 1024
_BLOCK_PX = 4096


class SlideImage(ABC):
    """An open slide: its technical properties and its pixels. Label and macro images are never opened."""

    size: tuple[int, int]
    """Width and height in level-0 pixels."""
    downsamples: tuple[float, ...]
    """Level-0 pixels per pixel of each level, the finest first."""
    level_sizes: tuple[tuple[int, int], ...]
    """Width and height of each level in its own pixels."""
    mpp: float | None
    """um per level-0 pixel that the file states; None if it states none."""
    resolution = Resolution()
    """What the file states of it, and why that may not count."""
    doubts: tuple[str, ...] = ()
    """What a person should know of the file's pixels."""
    vendor: str
    """The scanner's maker, or the kind of a plain image."""
    reader: str
    is_plain = False
    """It is a PNG, JPEG or BMP: an ordinary picture as a rule, without glass around what it shows."""
    bounds: tuple[int, int, int, int] | None = None
    """(x, y, width, height) of the scanned area, None where the file states none."""
    scanner_frame: tuple[tuple[float, float], tuple[float, float]] | None = None
    """Of a Hamamatsu slide: offset of its centre from the glass's centre, and pixel size, both (x, y) in nm."""

    def read(self, x: int, y: int, *, width: int, height: int, level: int = 0) -> NDArray[np.uint8]:
        """Read a region as RGB, height x width x 3; white where the file has nothing.

        Args:
            x: Left edge, level-0 pixels.
            y: Top edge, level-0 pixels.
            width: Pixels of the level.
            height: Pixels of the level.
            level: 0 is the finest.

        Raises:
            ConfigError: If the level does not exist, or the region has no pixel.
            UnreadableSlide: If the pixels cannot be decoded.
        """
        if not 0 <= level < len(self.level_sizes):
            raise ConfigError(f"level = {level}: the slide has the levels 0 to {len(self.level_sizes) - 1}")
        if min(width, height) < 1:
            raise ConfigError(f"width = {width}, height = {height}: expected at least 1 pixel each")
        return self._read(x, y, level=level, width=width, height=height)

    @abstractmethod
    def _read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region whose level and size are valid."""

    def thumbnail(self, px: int = THUMBNAIL_PX) -> Image.Image:
        """Reduce the slide by area averaging to at most ``px`` on its longer edge; Jupyter shows the image.

        Raises:
            ConfigError: If ``px`` is below 1.
            UnreadableSlide: If the pixels cannot be decoded.
        """
        if px < 1:
            raise ConfigError(f"px = {px}: expected at least 1 pixel")
        return Image.fromarray(overview(self, max_px=px)[0])

    def close(self) -> None:  # noqa: B027 (an image in memory has nothing to close)
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        mpp = "no um-per-pixel" if self.mpp is None else f"{self.mpp:.4g} um per pixel"
        size = f"{self.size[0]} x {self.size[1]} px"
        return f"{type(self).__name__}({size}, {mpp}, {len(self.level_sizes)} levels, {self.vendor})"


def nameless(error: Exception, path: Path) -> str:
    """Word an error without the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return without_paths(str(error), hidden=(str(path),))


def over_white(region: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay RGBA over white: OpenSlide leaves transparent what the file does not have."""
    rgb, alpha = region[..., :3], region[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    blended = (rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16)) + 127) // 255
    return blended.astype(np.uint8)


def overview(image: SlideImage, *, max_px: int) -> tuple[NDArray[np.uint8], float]:
    """Reduce the slide by area averaging to at most ``max_px`` on its longer edge.

    It is read block by block, which bounds the memory for a huge slide of one level too.

    Returns:
        RGB, H x W x 3, and level-0 pixels per pixel of it.
    """
    level, wanted = overview_level(image, max_px=max_px)
    downsample = image.downsamples[level]
    factor = max(1, math.ceil(wanted / downsample - 1e-6))
    width, height = (math.ceil(edge / downsample - 1e-6) for edge in image.size)  # a started pixel counts
    step = max(1, _BLOCK_PX // factor)
    columns, rows = math.ceil(width / factor), math.ceil(height / factor)
    result = np.empty((rows, columns, 3), np.uint8)
    for row in range(0, rows, step):
        for column in range(0, columns, step):
            high, wide = min(step, rows - row), min(step, columns - column)
            corner = (round(column * factor * downsample), round(row * factor * downsample))
            block = image.read(*corner, level=level, width=wide * factor, height=high * factor)
            result[row : row + high, column : column + wide] = resize(block, (wide, high))
    return result, downsample * factor


def overview_level(image: SlideImage, *, max_px: int) -> tuple[int, float]:
    """Choose the level that an overview is made from: the next finer than wanted, else the finest that there is.

    Returns:
        The level, and the reduction wanted of level 0.
    """
    wanted = max(1.0, max(image.size) / max_px)
    levels = range(len(image.downsamples))
    level = max(levels, key=lambda i: (d <= wanted, d) if (d := image.downsamples[i]) <= wanted else (False, -d))
    return level, wanted


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample to (width, height): area averaging down, cubic up."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    is_smaller = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC))
