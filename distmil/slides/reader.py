"""Files to pixels: whole-slide formats through OpenSlide, other images through Pillow.

Only technical properties are ever read: size, levels, resolution, vendor. Label and macro images are never opened.
Messages never hold a file's name, which may name a person.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from distmil.errors import MissingSlide, NoResolution, UnreadableSlide
from distmil.slides.checks import Resolution, no_resolution, page_doubts, pixel_fault, resolution_of
from distmil.slides.file_version import SLIDE_SUFFIXES, unusable
from distmil.slides.image import SlideImage, nameless, over_white
from distmil.slides.plain_image import PlainImage
from distmil.slides.tiff_pages import TiffPage, read_pages

_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_PNG_DEPTH = 24
"""Byte of a PNG that says the bits of a sample."""
_GENERIC = "generic-tiff"


def open_slide(path: str | Path, *, reader: str = "auto", is_known: bool = False) -> SlideImage:
    """Open a slide with OpenSlide where it knows the format, else as a plain image.

    Args:
        path: The slide.
        reader: ``tiling.reader``.
        is_known: The file was opened before, and need not be checked again.

    Raises:
        MissingSlide: If the file does not exist.
        UnreadableSlide: If no reader can open it, or its pixels would be read wrongly.
    """
    path = Path(path)
    if not path.exists():
        raise MissingSlide("the slide's file is not there")
    if refusal := unusable(path):
        raise UnreadableSlide(f"the slide {refusal}")
    if path.suffix.lower() == ".mrxs" != path.suffix:  # OpenSlide's driver goes by the name
        raise UnreadableSlide(
            "the slide cannot be opened: OpenSlide wants the suffix .mrxs in small letters; rename the file"
        )
    try:
        known = openslide.OpenSlide.detect_format(path)
        start = _start(path)
        pages = () if is_known else read_pages(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise UnreadableSlide(f"the slide cannot be read ({nameless(error, path)})") from error
    if known is not None or reader == "openslide":
        return WholeSlide(path, pages, is_known=is_known)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None:
        raise UnreadableSlide(
            "the slide is in no whole-slide format that OpenSlide knows, and no PNG, JPEG, BMP or TIFF; the file may "
            "be cut off"
        )
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES:
        raise UnreadableSlide(
            f"the slide's content is {kind}, its name says {suffix}, and OpenSlide does not know it; the file may be "
            "cut off, or named wrongly"
        )
    if kind == "PNG" and start[_PNG_DEPTH] > 8:
        raise UnreadableSlide(
            "the slide's samples have 16 bit; convert them to 8 bit, scaled to the range that is used"
        )
    return PlainImage(path, pages, is_known=is_known or kind != "TIFF")


def _start(path: Path) -> bytes:
    """Read a file's first bytes, filled up with zeros."""
    with path.open("rb") as file:
        return file.read(_PNG_DEPTH + 1).ljust(_PNG_DEPTH + 1, b"\0")


def resolve_mpp(image: SlideImage, *, given: float | None, default: float | None) -> float:
    """Find um per level-0 pixel: the manifest's, else the file's, else the default.

    Raises:
        NoResolution: If none of them states it, or if the file's pixels are not square.
    """
    if given is not None:
        return given
    if image.resolution.refusal:
        raise NoResolution(image.resolution.refusal)
    found = image.mpp or default
    if found is None:
        raise no_resolution(image.resolution.ignored, is_plain=image.is_plain)
    return found


class WholeSlide(SlideImage):
    """A slide that OpenSlide reads. One handle a process, never pickled, opened again after an error."""

    reader = "openslide"

    def __init__(self, path: Path, pages: Sequence[TiffPage] = (), *, is_known: bool = False) -> None:
        self._path = path
        self._handle = self._open()
        self._is_open = True
        properties = self._handle.properties
        self.size: tuple[int, int] = self._handle.dimensions
        self.downsamples: tuple[float, ...] = tuple(self._handle.level_downsamples)
        self.level_sizes: tuple[tuple[int, int], ...] = tuple(self._handle.level_dimensions)
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.bounds = _bounds([properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")])
        self.scanner_frame = _scanner_frame(properties)
        self.resolution = self._resolution(pages)
        self.mpp = self.resolution.mpp
        level_0 = page_doubts(pages, size=self.size) if self.vendor == _GENERIC else []
        self.doubts = (*self.resolution.doubts, *level_0)
        fault = None if is_known else self._fault(pages)
        if fault:
            self.close()
            raise UnreadableSlide(fault)

    def _fault(self, pages: Sequence[TiffPage]) -> str | None:
        """Find out why the pixels would be read wrongly."""
        if self.vendor == _GENERIC and not pages:
            return "the slide is a TIFF whose tags cannot be read; save it again"
        return pixel_fault(pages, level_sizes=self.level_sizes)

    def _resolution(self, pages: Sequence[TiffPage]) -> Resolution:
        """Find the file's resolution: by its tags or its OME-XML in a generic TIFF, else as OpenSlide finds it."""
        if self.vendor == _GENERIC and pages:
            level_0 = [page for page in pages if page.size == self.size and page.is_tiled]
            return resolution_of(level_0[0].pixel_um if level_0 else None)
        properties = self._handle.properties
        x, y = (
            _positive(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
        )
        power = _positive(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        if not (x or y) and power:
            mpp = 10.0 / power
            doubt = f"the file states no um-per-pixel; {mpp:.4g} is taken, by its objective power of {power:g}x"
            return Resolution(mpp, (doubt,))
        side = x or y
        return resolution_of((x or side, y or side) if side else None)

    def _read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        try:
            region = np.asarray(self._handle.read_region((x, y), level, (width, height)))
        except openslide.OpenSlideError as error:
            self.close()
            self._handle = self._open()  # the old handle stays in its error
            self._is_open = True
            reason = nameless(error, self._path)
            raise UnreadableSlide(f"the slide is damaged at x={x}, y={y}, level {level}: {reason}") from error
        return over_white(region)

    def close(self) -> None:
        """Close the file."""
        if self._is_open:
            self._handle.close()
        self._is_open = False

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise UnreadableSlide(f"the slide cannot be opened: {nameless(error, self._path)}") from error


def read_bounds(path: str | Path) -> tuple[int, int, int, int] | None:
    """Read the scanned area of a slide; see ``SlideImage.bounds``. Raises: SlideError."""
    with open_slide(path) as image:
        return image.bounds


def read_scanner_frame(path: str | Path) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Read where a Hamamatsu slide's image lies on the glass.

    Returns:
        Offset of the image's centre from the glass's centre, and the size of a level-0 pixel, both (x, y) in nm; None
        where the file does not state them.

    Raises:
        SlideError: If the file cannot be opened.
    """
    with open_slide(path, is_known=True) as image:
        return image.scanner_frame


def _scanner_frame(properties: Mapping[str, str]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Parse what ``read_scanner_frame`` returns."""
    try:
        x, y = (float(properties[f"hamamatsu.{axis}OffsetFromSlideCentre"]) for axis in "XY")
        across, down = (
            float(properties[name]) * 1000 for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
        )
    except (KeyError, ValueError):
        return None
    is_right = all(map(math.isfinite, (x, y, across, down))) and across > 0 and down > 0
    return ((x, y), (across, down)) if is_right else None


def _bounds(texts: Sequence[str | None]) -> tuple[int, int, int, int] | None:
    """Parse the scanned area; None unless it is stated in whole numbers."""
    try:
        x, y, width, height = (int(text or "") for text in texts)
    except ValueError:
        return None
    return (x, y, width, height) if width > 0 and height > 0 else None


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None
