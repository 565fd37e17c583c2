"""An open slide, whatever holds its pixels."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distmil.defects import without_paths
from distmil.slides.checks import Resolution


class SlideImage(ABC):
    """An open slide. Sizes are (width, height) in level-0 pixels."""

    size: tuple[int, int]
    downsamples: tuple[float, ...]
    level_sizes: tuple[tuple[int, int], ...]
    """Width and height of each level in its own pixels."""
    mpp: float | None
    resolution = Resolution()
    """What the file states of it, and why that may not count."""
    doubts: tuple[str, ...] = ()
    """What a person should know of the file's pixels."""
    vendor: str
    reader: str
    bounds: tuple[int, int, int, int] | None = None
    """(x, y, width, height) of the scanned area, None where the file states none."""

    @abstractmethod
    def read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region as RGB, height x width x 3; white where the file has nothing.

        Args:
            x: Left edge, level-0 pixels.
            y: Top edge, level-0 pixels.
            level: Level to read from.
            width: Pixels of that level.
            height: Pixels of that level.

        Raises:
            UnreadableSlide: If the pixels cannot be decoded.
        """

    def close(self) -> None:  # noqa: B027 (an image in memory has nothing to close)
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
