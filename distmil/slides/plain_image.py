"""PNG, JPEG, BMP and plain TIFF through Pillow: one level, held in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from distmil.errors import UnreadableSlide
from distmil.slides.checks import GREY_DOUBT, page_doubts, pixel_fault, resolution_of
from distmil.slides.image import SlideImage, nameless, over_white
from distmil.slides.tiff_pages import TiffPage

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GREY_MODES = {"1", "L", "LA", "La"}
_MODES = {"1", "L", "P", "RGB", "YCbCr"}


class PlainImage(SlideImage):
    """An ordinary image held in memory, upright by its EXIF orientation, as one level."""

    reader = "image"

    def __init__(self, path: Path, pages: Sequence[TiffPage] = (), *, is_known: bool = False) -> None:
        self.downsamples: tuple[float, ...] = (1.0,)
        fault = None if is_known else _fault(pages)
        if fault:
            raise UnreadableSlide(fault)
        self.resolution = resolution_of(pages[0].pixel_um if pages else None)
        self.mpp = self.resolution.mpp
        try:
            with PillowImage.open(path, formats=_FORMATS) as file:
                self.vendor = (file.format or "image").lower()
                self.is_plain = file.format != "TIFF"
                is_grey = file.mode in _GREY_MODES and not pages  # the pages of a TIFF say so themselves
                self._pixels = _to_rgb(ImageOps.exif_transpose(file))
        except PillowImage.DecompressionBombError:
            raise UnreadableSlide(
                "the slide is a plain image of more pixels than are held in memory; save it as a tiled pyramid TIFF"
            ) from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            codec = f"its compression is {pages[0].compression}: save it as JPEG or LZW; " if pages else ""
            raise UnreadableSlide(
                f"the slide is a plain image that cannot be decoded ({codec}{nameless(error, path)})"
            ) from error
        first = page_doubts(pages, size=pages[0].size) if pages else []
        self.doubts = (*self.resolution.doubts, *first, *((GREY_DOUBT,) if is_grey else ()))
        self.size = (self._pixels.shape[1], self._pixels.shape[0])
        self.level_sizes: tuple[tuple[int, int], ...] = (self.size,)

    def _read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        region = np.full((height, width, 3), 255, np.uint8)
        left, top = max(0, x), max(0, y)
        inside = self._pixels[top : max(top, y + height), left : max(left, x + width)]
        region[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return region


def _fault(pages: Sequence[TiffPage]) -> str | None:
    """Find out why Pillow would read a TIFF wrongly, the first page of which it takes."""
    if not pages:
        return "the slide is a TIFF whose tags cannot be read; the file may be cut off"
    first, largest = pages[0].size, max(pages, key=lambda page: page.size[0] * page.size[1]).size
    if first != largest:
        return (
            f"the slide's first page is {first[0]} x {first[1]} px, another one {largest[0]} x {largest[1]} px, and "
            "OpenSlide does not know the file; save the largest page alone, in tiles"
        )
    return pixel_fault(pages, level_sizes=[first])


def _to_rgb(image: PillowImage.Image) -> NDArray[np.uint8]:
    """Convert to 8-bit RGB, transparent pixels over white. Raises: UnreadableSlide if the image is of another kind."""
    if image.mode.startswith(("I", "F")):
        raise UnreadableSlide("the slide's samples have more than 8 bit; convert them to 8 bit")
    if image.mode in {"RGBa", "La"}:
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        return over_white(np.asarray(image.convert("RGBA")))
    if image.mode not in _MODES:
        raise UnreadableSlide(f"the slide's colours are {image.mode}; save it as RGB with 8 bit per sample")
    return np.asarray(image.convert("RGB"))
