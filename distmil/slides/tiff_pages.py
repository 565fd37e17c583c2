"""The pages of a TIFF by their tags: how pixels are stored, and how large they are. No pixel is decoded.

A damaged file may chain its pages in a circle or without end: reading stops at a page seen before, and after
``MAX_PAGES``.
"""

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

MAX_PAGES = 1000
"""Most pages of a file that are looked at."""
GREY = {0, 1}
"""Photometric of pages whose samples are brightness: MinIsWhite, MinIsBlack."""
RGB, PALETTE, YCBCR = 2, 3, 6
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 282, 283, 296
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # by the tag ResolutionUnit; 1 has no unit
_UM_PER_NAME = {"pm": 1e-6, "nm": 1e-3, "um": 1.0, "µm": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "in": 25_400.0}
_MAX_OME_CHARACTERS = 2**20
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^<>]*>")
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*("[^"]*"|'[^']*')""")

Size = tuple[int, int]


class EndlessPages(Exception):
    """The pages of a TIFF form a circle or are too many; the text continues "the file ..."."""


@dataclass(frozen=True)
class TiffPage:
    """What a page's tags say of its pixels."""

    size: Size
    """Width and height in pixels."""
    is_tiled: bool
    photometric: int
    """The tag PhotometricInterpretation; -1 where the page has none."""
    num_samples: int
    """Samples of a pixel."""
    alphas: tuple[int, ...]
    """The tag ExtraSamples: what the samples after the colours are."""
    bits: int
    """Bits of a sample."""
    is_integer: bool
    """Samples are whole numbers without a sign."""
    orientation: int
    """The tag Orientation; 1 is upright."""
    compression: str
    """Name of the compression."""
    is_nested: bool = False
    """A SubIFD of another page."""
    pixel_um: tuple[float, float] | None = None
    """Width and height of a pixel in um, where the tags or the OME-XML state both."""
    num_channels: int = 1
    """Channels of the image by its OME-XML."""


def read_pages(path: Path) -> tuple[TiffPage, ...]:
    """Read the tags of every page.

    Returns:
        The pages in the file's order, each followed by its nested ones, up to the first damaged one; none if the file
        is not a TIFF.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) not in _MAGIC:
            return ()
    pages: list[TiffPage] = []
    try:
        with tifffile.TiffFile(path) as tiff:
            for page, is_nested in every_page(tiff):
                pages.append(_described(page, is_nested=is_nested))
    except OSError:
        raise
    except Exception:  # noqa: BLE001 (tifffile raises almost anything on a damaged file; the reader says what is wrong)
        return tuple(pages)
    return tuple(pages)


def every_page(tiff: tifffile.TiffFile, *, is_strict: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the pages of an open TIFF, each followed by its nested ones, and whether they are nested.

    Args:
        tiff: The file.
        is_strict: Damage is an error; otherwise the pages before it are all there are.

    Raises:
        EndlessPages: If is_strict, and pages form a circle or are more than ``MAX_PAGES``.
    """
    seen: set[int] = set()
    for page in _chain(tiff.pages, seen, is_strict=is_strict):
        yield page, False
        for nested in _chain(page.pages or (), seen, is_strict=is_strict):
            yield nested, True


def _chain(pages: Any, seen: set[int], *, is_strict: bool) -> Iterator[Any]:
    """Yield pages one after the other, as long as they are new and not too many."""
    for i in range(MAX_PAGES + 1):
        try:
            page = pages[i]
        except Exception as error:
            if is_strict and not isinstance(error, IndexError):
                raise
            return
        if page.offset in seen or len(seen) == MAX_PAGES:
            if not is_strict:
                return
            if page.offset in seen:
                raise EndlessPages("is damaged: its pages lead back to an earlier page; save it again")
            raise EndlessPages(f"has more than {MAX_PAGES} pages; save its image alone")
        seen.add(page.offset)
        yield page


def _described(page: Any, *, is_nested: bool) -> TiffPage:
    """Describe a page by its tags."""
    ome = _ome_pixels(page)
    return TiffPage(
        size=(int(page.imagewidth), int(page.imagelength)),
        is_tiled=bool(page.is_tiled),
        photometric=-1 if page.photometric is None else int(page.photometric),
        num_samples=int(page.samplesperpixel),
        alphas=tuple(int(kind) for kind in page.extrasamples),
        bits=int(page.bitspersample),
        is_integer=int(page.sampleformat) in {1, 4},  # 4: not defined, which nobody writes but for whole numbers
        orientation=int(_tag(page, _ORIENTATION, 1)),
        compression=str(getattr(page.compression, "name", page.compression)),
        is_nested=is_nested,
        pixel_um=_ome_pixel_um(ome) or _tag_pixel_um(page),
        num_channels=int(ome["SizeC"]) if ome.get("SizeC", "").isdecimal() else 1,
    )


def _tag(page: Any, code: int, default: Any) -> Any:
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def _tag_pixel_um(page: Any) -> tuple[float, float] | None:
    """Take the size of a pixel from the resolution tags, which count only with a unit."""
    unit = _UM_PER_UNIT.get(int(_tag(page, _RESOLUTION_UNIT, 1)))
    per_unit = [_ratio(_tag(page, code, None)) for code in (_X_RESOLUTION, _Y_RESOLUTION)]
    if unit is None or not per_unit[0] or not per_unit[1]:
        return None
    return unit / per_unit[0], unit / per_unit[1]


def _ratio(value: Any) -> float:
    """Turn a rational or a number into a float, 0 for what is neither or has no value."""
    try:
        numerator, denominator = value if isinstance(value, tuple) else (value, 1)
        return float(numerator) / float(denominator)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


def _ome_pixels(page: Any) -> Mapping[str, str]:
    """Take the attributes of the first Pixels element out of a page's OME-XML; none where it has none.

    A pattern is enough for one element, and needs no defence against what XML can do.
    """
    text = str(page.description or "")[:_MAX_OME_CHARACTERS]
    if not text.lstrip().startswith("<") or not (found := _PIXELS.search(text)):
        return {}
    return {name: html.unescape(value[1:-1]) for name, value in _ATTRIBUTE.findall(found[0])}


def _ome_pixel_um(ome: Mapping[str, str]) -> tuple[float, float] | None:
    """Take the size of a pixel from OME attributes; the unit is um where none is named."""
    sides = []
    for axis in ("X", "Y"):
        unit = ome.get(f"PhysicalSize{axis}Unit", "um").strip().replace("\u03bc", "µ")
        value = _ratio(ome.get(f"PhysicalSize{axis}"))
        sides.append(value * _UM_PER_NAME.get(unit, 0.0))
    return (sides[0], sides[1]) if sides[0] > 0 and sides[1] > 0 else None
