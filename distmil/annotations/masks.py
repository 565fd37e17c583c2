"""Mask images: a PNG or TIFF whose pixel values say what is marked, at any size in proportion to the slide.

A mask in proportion to the scanned area alone (OpenSlide's bounds) covers that area.
Value 0 is not marked; ``distmil.labels.rules`` decides about the other values. A palette image counts by its indices,
and values above 255 are kept as 255. Of a tiled pyramid the finest level within ``MAX_MASK_PX`` is read.
"""

import contextlib
import itertools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from distmil.annotations.outlines import Annotation
from distmil.annotations.slide_facts import Bounds, Size, SlideFacts
from distmil.errors import AnnotationError
from distmil.slides.tiff_pages import EndlessPages, every_page

MAX_MASK_PX = 89_478_485
"""Most pixels a mask may have: Pillow's own default limit against decompression bombs, which stays on."""

_LOSSY = {6, 7, 34892, 33007}
"""TIFF compressions whose pixels are not the ones that were written: the JPEG family."""


class _OtherProportions(AnnotationError):
    """The mask is not in the slide's proportions."""


def read_mask(path: Path, *, slide: SlideFacts) -> Annotation:
    """Read a mask image, a PNG or TIFF file.

    Raises:
        AnnotationError: If the image cannot be decoded, has colours, fractions or negative values, is larger than
            ``MAX_MASK_PX``, or is not in the slide's proportions.
    """
    try:
        return _mask(path, (0, 0, *slide.size))
    except _OtherProportions:
        bounds = slide.bounds
        if bounds is None:
            raise
        with contextlib.suppress(_OtherProportions):
            return replace(_mask(path, bounds), doubts=(_scanned_area(bounds),))
        raise


def _mask(path: Path, frame: Bounds) -> Annotation:
    """Read a mask of a rectangle of the slide."""
    size = (frame[2], frame[3])
    try:
        with path.open("rb") as file:
            read = _read_tiff if file.read(2) in {b"II", b"MM"} else _read_with_pillow
        pixels, has_alpha = read(path, size)
    except AnnotationError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large() from None
    except Exception as error:  # decoders raise almost anything on a damaged file
        raise AnnotationError(
            f"the mask cannot be decoded ({type(error).__name__}); save it again as a PNG or as an uncompressed TIFF"
        ) from error
    values = _grey(pixels, has_alpha=has_alpha)
    scale = mask_scale((values.shape[1], values.shape[0]), size)
    return Annotation({}, mask=values, mask_scale=scale, mask_corner=(float(frame[0]), float(frame[1])))


def _scanned_area(bounds: Bounds) -> str:
    return (
        f"annotation: its mask has the proportions of the scanned area ({bounds[2]} x {bounds[3]} px from "
        f"({bounds[0]}, {bounds[1]})), not those of the slide, and is taken as one of that area"
    )


def mask_scale(mask_size: Size, slide_size: Size) -> tuple[float, float]:
    """Compute the level-0 pixels per mask pixel, (x, y).

    Level sizes are cut off or rounded up, so a whole number that explains both sides wins over their plain ratios.
    """
    ratios = (slide_size[0] / mask_size[0], slide_size[1] / mask_size[1])
    if ratios[0] == ratios[1]:
        return ratios
    for factor in (2 ** round(np.log2(max(1.0, ratios[0]))), round(ratios[0]), round(ratios[1])):
        if factor and all(abs(mask - slide / factor) < 1 for mask, slide in zip(mask_size, slide_size, strict=True)):
            return float(factor), float(factor)
    return ratios


def _read_with_pillow(path: Path, slide_size: Size, *, frame: int = 0) -> tuple[NDArray[Any], bool]:
    """Decode an image with Pillow, its bomb warning taken as the error it stands for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.seek(frame)
            _check_size(image.size, slide_size)
            return np.asarray(image), image.getbands()[-1] == "A"


def _read_tiff(path: Path, slide_size: Size) -> tuple[NDArray[Any], bool]:
    """Decode the finest page within the limit; by Pillow where tifffile lacks the codec."""
    with tifffile.TiffFile(path) as file:
        number, page = _choose_page(file, slide_size)
        if page.compression in _LOSSY:
            raise AnnotationError("the mask is JPEG-compressed, which smears its values; save it losslessly (deflate)")
        try:
            pixels = page.asarray()
        except ValueError as error:
            if number is None or "imagecodecs" not in str(error):
                raise
            return _read_with_pillow(path, slide_size, frame=number)
        return np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels, bool(page.extrasamples)


def _choose_page(file: tifffile.TiffFile, slide_size: Size) -> tuple[int | None, Any]:
    """Choose the finest page in the slide's proportions that is small enough, with its number unless it is nested."""
    numbers = itertools.count()
    try:
        pages = [(None if is_nested else next(numbers), page) for page, is_nested in every_page(file, is_strict=True)]
    except EndlessPages as error:
        raise AnnotationError(f"the mask {error}") from error
    sizes = [(page.imagewidth, page.imagelength) for _, page in pages]
    fitting = [i for i, size in enumerate(sizes) if fits(size, slide_size)]
    if not fitting:
        _check_size(sizes[0], slide_size)
    small = [i for i in fitting if sizes[i][0] * sizes[i][1] <= MAX_MASK_PX]
    if not small:
        raise _too_large()
    best = max(small, key=lambda i: sizes[i])
    if sizes.count(sizes[best]) > 1:
        raise AnnotationError(
            f"the mask file holds several images of {_text(sizes[best])} px; expected one whose values are classes"
        )
    return pages[best]


def _grey(pixels: NDArray[Any], *, has_alpha: bool) -> NDArray[np.uint8]:
    """Convert one image of whole numbers to uint8 values."""
    if pixels.dtype.kind not in "bui" or (pixels.dtype.kind == "i" and pixels.min() < 0):
        raise AnnotationError(
            f"the mask's values are {pixels.dtype} with fractions or signs; expected whole numbers from 0"
        )
    if pixels.ndim == 3 and has_alpha:
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise AnnotationError("the mask has transparent pixels; save it without an alpha channel")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise AnnotationError(
                "the mask has colours; expected one value per pixel, 0 = not marked: save it as greyscale"
            )
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise AnnotationError(f"the mask has {pixels.ndim} axes; expected one plain image")
    values: NDArray[np.uint8] = np.minimum(pixels, 255).astype(np.uint8)
    return values


def _check_size(mask_size: Size, slide_size: Size) -> None:
    if not fits(mask_size, slide_size):
        raise _OtherProportions(
            f"the mask is {_text(mask_size)} px and the slide {_text(slide_size)} px, which are different "
            "proportions; expected a mask of the whole slide at any scale: check that it belongs to this slide"
        )
    if mask_size[0] * mask_size[1] > MAX_MASK_PX:
        raise _too_large()


def fits(mask_size: Size, slide_size: Size) -> bool:
    """Say whether the proportions agree within one mask pixel."""
    (width, height), (slide_width, slide_height) = mask_size, slide_size
    return (
        abs(height - width * slide_height / slide_width) <= 1 or abs(width - height * slide_width / slide_height) <= 1
    )


def _too_large() -> AnnotationError:
    return AnnotationError(
        f"the mask has more than {MAX_MASK_PX} pixels; scale it down by a whole number (nearest neighbour), or "
        "save it as a tiled pyramid TIFF with a smaller level"
    )


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
