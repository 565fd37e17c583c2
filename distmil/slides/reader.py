"""Files to pixels: whole-slide formats through OpenSlide, PNG, JPEG and plain TIFF through Pillow.

Only technical properties are ever read: size, levels, resolution, vendor. Label and macro images are never opened.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps, TiffImagePlugin, UnidentifiedImageError

from distmil.errors import MissingSlide, NoResolution, UnreadableSlide

logger = logging.getLogger(__name__)

PLAIN_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
_BLOCK_PX = 4096
_TIFF_RESOLUTION, _TIFF_UNIT = 282, 296
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}


class SlideImage(Protocol):
    """An open slide. Sizes are (width, height) in level-0 pixels."""

    size: tuple[int, int]
    downsamples: tuple[float, ...]
    level_sizes: tuple[tuple[int, int], ...]
    """Width and height of each level in its own pixels."""
    mpp: float | None
    vendor: str
    reader: str
    bounds: tuple[int, int, int, int] | None
    """(x, y, width, height) of the scanned area, None where the file states none."""

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
        ...

    def close(self) -> None:
        """Close the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_slide(path: str | Path, *, reader: str = "auto") -> SlideImage:
    """Open a slide with OpenSlide where it knows the format, else as a plain image.

    Raises:
        MissingSlide: If there is no file.
        UnreadableSlide: If no reader can open it.
    """
    path = Path(path)
    if not path.exists():
        raise MissingSlide(f"{path.name}: the file is not there")
    try:
        known = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise UnreadableSlide(f"{path.name}: {error}") from error
    if known is not None or reader == "openslide":
        return WholeSlide(path)
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return PlainImage(path)
    raise UnreadableSlide(
        f"{path.name}: not a whole-slide format that OpenSlide knows, nor PNG, JPEG or TIFF; the file may be cut off"
    )


def resolve_mpp(image: SlideImage, *, given: float | None, default: float | None) -> float:
    """Return um per level-0 pixel: the manifest's, else the file's, else the default.

    Raises:
        NoResolution: If none of them states it.
    """
    if given is not None:
        if image.mpp and abs(given / image.mpp - 1) > 0.05:
            logger.warning("the manifest says %.4g um/px, the file %.4g um/px; the manifest counts", given, image.mpp)
        return given
    found = image.mpp or default
    if found is None:
        raise NoResolution(
            "no um-per-pixel in the file; set mpp in the manifest or tiling.default_mpp "
            "(tiling.mpp=null works in pixels, for plain images)"
        )
    return found


def overview(image: SlideImage, *, max_px: int) -> tuple[NDArray[np.uint8], float]:
    """Return the slide reduced by area averaging to at most ``max_px`` on its longer edge, and the reduction.

    It is read block by block, so that memory is bounded for a huge slide of one level too.

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


class Closing:
    """The with-statement of a file."""

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WholeSlide(Closing):
    """A slide that OpenSlide reads. One handle a process, never pickled, opened anew after an error."""

    reader = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = self._open()
        self._is_open = True
        properties = self._handle.properties
        self.size: tuple[int, int] = self._handle.dimensions
        self.downsamples: tuple[float, ...] = tuple(self._handle.level_downsamples)
        self.level_sizes: tuple[tuple[int, int], ...] = tuple(self._handle.level_dimensions)
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.bounds = _bounds([properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")])
        self.mpp = _mpp(
            properties.get(openslide.PROPERTY_NAME_MPP_X),
            properties.get(openslide.PROPERTY_NAME_MPP_Y),
            properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER),
        )

    def read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see SlideImage."""
        try:
            region = np.asarray(self._handle.read_region((x, y), level, (width, height)))
        except openslide.OpenSlideError as error:
            self.close()
            self._handle = self._open()  # the old handle stays in its error
            self._is_open = True
            raise UnreadableSlide(f"{self._path.name}: damaged at x={x}, y={y}, level {level}: {error}") from error
        return _over_white(region)

    def close(self) -> None:
        """Close the file."""
        if self._is_open:
            self._handle.close()
        self._is_open = False

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise UnreadableSlide(f"{self._path.name}: {error}") from error


class PlainImage(Closing):
    """An ordinary image held in memory, upright by its EXIF orientation, as one level."""

    reader = "image"
    bounds: tuple[int, int, int, int] | None = None

    def __init__(self, path: Path) -> None:
        self.downsamples: tuple[float, ...] = (1.0,)
        try:
            with PillowImage.open(path) as file:
                self.vendor = (file.format or "image").lower()
                self.mpp = _tiff_mpp(file) if isinstance(file, TiffImagePlugin.TiffImageFile) else None
                self._pixels = _to_rgb(ImageOps.exif_transpose(file), path)
        except PillowImage.DecompressionBombError as error:
            raise UnreadableSlide(f"{path.name}: {error}; save it as a tiled pyramid TIFF") from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UnreadableSlide(f"{path.name}: not a readable image ({error})") from error
        self.size = (self._pixels.shape[1], self._pixels.shape[0])
        self.level_sizes: tuple[tuple[int, int], ...] = (self.size,)

    def read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region; see SlideImage."""
        if level != 0:
            raise ValueError(f"level {level}: a plain image has level 0 only")
        region = np.full((height, width, 3), 255, np.uint8)
        left, top = max(0, x), max(0, y)
        inside = self._pixels[top : max(top, y + height), left : max(left, x + width)]
        region[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return region


def read_bounds(path: str | Path) -> tuple[int, int, int, int] | None:
    """Return the scanned area of a slide; see ``SlideImage.bounds``. Raises: SlideError."""
    with open_slide(path) as image:
        return image.bounds


def _bounds(texts: Sequence[str | None]) -> tuple[int, int, int, int] | None:
    """Return the scanned area, None unless it is stated in whole numbers."""
    try:
        x, y, width, height = (int(text or "") for text in texts)
    except ValueError:
        return None
    return (x, y, width, height) if width > 0 and height > 0 else None


def _over_white(region: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay RGBA over white: OpenSlide leaves transparent what the file does not have."""
    rgb, alpha = region[..., :3], region[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    blended = (rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16)) + 127) // 255
    return blended.astype(np.uint8)


def _mpp(mpp_x: str | None, mpp_y: str | None, power: str | None) -> float | None:
    """Return um per pixel from the file's statements, by objective power where there is no other, else None."""
    x, y = _positive(mpp_x), _positive(mpp_y)
    if x and y:
        if abs(x / y - 1) > 0.02:
            logger.warning("pixels are not square (%.4g x %.4g um); taking their mean", x, y)
        return x if x == y else (x + y) / 2
    magnification = _positive(power)
    return x or y or (10.0 / magnification if magnification else None)


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None


def _tiff_mpp(file: TiffImagePlugin.TiffImageFile) -> float | None:
    """Return um per pixel from a TIFF's resolution tags where they have a unit."""
    per_unit, unit = file.tag_v2.get(_TIFF_RESOLUTION), file.tag_v2.get(_TIFF_UNIT)
    if not per_unit or unit not in _UM_PER_UNIT or not float(per_unit) > 0:
        return None
    return _UM_PER_UNIT[unit] / float(per_unit)


def _to_rgb(image: PillowImage.Image, path: Path) -> NDArray[np.uint8]:
    """Return 8-bit RGB, transparent pixels over white."""
    if image.mode.startswith(("I", "F")):
        raise UnreadableSlide(f"{path.name}: {image.mode} pixels (more than 8 bit); convert it to 8 bit")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))
