"""Whether a slide's pixels are what they seem: one judgement for every reader, by what the file states.

Readers disagree about turned, deep, planar or oddly coloured images, and some show them wrong without a word. Such a
file is refused with what to do about it, and what can be used with care is a doubt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distmil.errors import NoResolution, NoTissue, Reason
from distmil.slides.grid import rounded
from distmil.slides.tiff_pages import GREY, PALETTE, RGB, YCBCR, Size, TiffPage

_TURNED = range(2, 9)
"""Orientation: 1 is upright, and other values count for no reader."""
FINEST_UM, COARSEST_UM = 0.01, 20.0
"""Smallest and largest pixel that a microscope or a slide scanner makes; 72 or 96 per inch is a screen's resolution."""
SQUARE_WITHIN = 0.05
"""Relative difference of width and height up to which a pixel counts as square."""
GREY_DOUBT = "the file is grey: it holds no colours of a stain"
_NOTED_FROM = 0.02
_COLOURS = {RGB: 3, YCBCR: 3, PALETTE: 1}  # samples without alpha
_ALPHAS = {1, 2}  # ExtraSamples: associated (premultiplied) and unassociated alpha
_KINDS = {5: "CMYK", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "a sensor's raw mosaic"}
_SAVE_RGB = "save it as RGB with 8 bit per sample"


@dataclass(frozen=True)
class Resolution:
    """How large a pixel is by the file."""

    mpp: float | None = None
    """um per level-0 pixel, None where the file states none that can be used."""
    doubts: tuple[str, ...] = ()
    ignored: str = ""
    """Why what the file states does not count; a default may stand in for it."""
    refusal: str = ""
    """Why what the file states cannot be used, and a default cannot stand in for it either."""


def pixel_fault(pages: Sequence[TiffPage], *, level_sizes: Iterable[Size]) -> str | None:
    """Find out why a TIFF's pixels would be read wrongly.

    Args:
        pages: All of them; none for a file that is not a TIFF.
        level_sizes: Width and height of the levels that are read.

    Returns:
        What is wrong and what to do about it, or None.
    """
    if not pages:
        return None
    wanted = set(level_sizes)
    used = [page for page in pages if page.size in wanted] or [max(pages, key=lambda page: page.size[0] * page.size[1])]
    for page in used:
        fault = _page_fault(page)
        if fault:
            return fault
    same = [page for page in pages if page.size == used[0].size and not page.is_nested]
    if is_grey(used[0]) and (len(same) > 1 or used[0].num_channels > 1):
        number = max(len(same), used[0].num_channels)
        return (
            f"the file holds {number} grey images of {used[0].size[0]} x {used[0].size[1]} px: its colours as separate "
            "grey channels, or focal planes; merge them into one RGB image of 8 bit per sample"
        )
    return None


def _page_fault(page: TiffPage) -> str | None:
    """Find out why one page would be read wrongly."""
    if page.bits != 8 or not page.is_integer:
        kind = f"{page.bits} bit" if page.is_integer else f"{page.bits} bit with signs or fractions"
        return f"the file's samples have {kind}; convert them to 8 bit, scaled to the range that is used"
    if page.orientation in _TURNED:
        return (
            f"the file's Orientation tag is {page.orientation}: its image lies turned or mirrored; save it upright, "
            "with Orientation 1"
        )
    if page.photometric in _KINDS:
        return f"the file's colours are {_KINDS[page.photometric]}; {_SAVE_RGB}"
    colours = 1 if page.photometric in GREY else _COLOURS.get(page.photometric)
    if colours is None:
        return f"the file's colours are of an unknown kind (PhotometricInterpretation {page.photometric}); {_SAVE_RGB}"
    if page.photometric in GREY and page.num_samples - len(_alphas(page)) > 1:
        return (
            f"the file's {page.num_samples} samples per pixel are tagged as grey: its colours are separate grey "
            f"channels; {_SAVE_RGB} (PhotometricInterpretation 2)"
        )
    if page.num_samples != colours + len(_alphas(page)):
        return f"the file has {page.num_samples} samples per pixel, {colours} of which are colours; {_SAVE_RGB}"
    return None


def _alphas(page: TiffPage) -> tuple[int, ...]:
    """List the samples that are declared as alpha, one at most."""
    return page.alphas if len(page.alphas) == 1 and page.alphas[0] in _ALPHAS else ()


def is_grey(page: TiffPage) -> bool:
    """Tell whether a page has no colours."""
    return page.photometric in GREY


def page_doubts(pages: Sequence[TiffPage], *, size: Size) -> list[str]:
    """Say what a person should know of a TIFF whose first page of the slide's size is read.

    Args:
        pages: All of them; none for a file that is not a TIFF.
        size: Width and height of level 0.
    """
    same = [page for page in pages if page.size == size and not page.is_nested]
    doubts = [GREY_DOUBT] if same and is_grey(same[0]) else []
    if len(same) > 1:
        doubts.append(f"the file holds {len(same)} images of the slide's size, focal planes perhaps; the first is read")
    return doubts


def resolution_of(pixel_um: tuple[float, float] | None) -> Resolution:
    """Judge the size of a pixel that a file states.

    Args:
        pixel_um: Width and height in um, None where the file states none.
    """
    if pixel_um is None:
        return Resolution()
    width, height = pixel_um
    text = f"{width:.4g} x {height:.4g} um"
    if not all(FINEST_UM <= side <= COARSEST_UM for side in pixel_um):
        return Resolution(ignored=f"the file states pixels of {text}, which no microscope makes, and does not count")
    if abs(width / height - 1) > SQUARE_WITHIN:
        fault = f"the pixels are not square, {text}"
        way_out = "resample the file to square pixels, or set mpp in the manifest to take them as square"
        return Resolution(doubts=(fault,), refusal=f"{fault}; {way_out}")
    is_noted = abs(width / height - 1) > _NOTED_FROM
    doubts = (f"the pixels are not quite square, {text}; their mean counts",) if is_noted else ()
    return Resolution(width if width == height else (width + height) / 2, doubts)


def is_glass(*, is_plain: bool, mpp: float | None, strategy: str) -> bool:
    """Tell whether a slide is expected to show tissue on glass, so that doubts about glass, ink and stain count.

    Args:
        is_plain: It is a PNG, JPEG or BMP.
        mpp: ``tiling.mpp``; None is for images that are not of a microscope.
        strategy: ``tiling.strategy``; only ``foreground`` looks for tissue.
    """
    return strategy == "foreground" and mpp is not None and not is_plain


def mpp_doubts(resolution: Resolution, *, given: float | None) -> list[str]:
    """Say where the resolution that is taken rests on weak ground.

    Args:
        resolution: The file's.
        given: um per pixel by the manifest.
    """
    in_file = resolution.mpp
    if given is None:
        return [resolution.ignored] if resolution.ignored else []
    if not in_file or abs(given / in_file - 1) <= SQUARE_WITHIN:
        return []
    return [f"the manifest says {given:.4g} um/px, the file {in_file:.4g} um/px; the manifest counts"]


def no_resolution(ignored: str, *, is_plain: bool) -> NoResolution:
    """Word the error of a slide whose resolution nobody states.

    Args:
        ignored: Why what the file states does not count, "" where it states nothing.
        is_plain: It is a PNG, JPEG or BMP, whose resolution may mean nothing.
    """
    found = ignored or "no um-per-pixel in the file"
    text = f"{found}; set mpp in the manifest or tiling.default_mpp (tiling.mpp=null works in pixels, for plain images)"
    if is_plain:
        return NoResolution(text, reason=Reason(found, "tiling.mpp", "null"))
    return NoResolution(text, reason=Reason(found, "tiling.default_mpp"))


def no_tissue(most: float, *, min_tissue: float) -> NoTissue:
    """Word the error of a slide no patch of which holds enough tissue.

    Args:
        most: Largest share of tissue that a patch holds.
        min_tissue: ``tiling.min_tissue``.
    """
    text = f"no patch holds {min_tissue:.0%} of tissue (the most is {most:.1%})"
    value = rounded(most, up=False)
    if not value:
        way_out = "tile all of it with tiling.strategy=crop"
        return NoTissue(f"{text}; {way_out}", reason=Reason("no patch holds tissue", "tiling.strategy", "crop"))
    return NoTissue(
        f"{text}; set tiling.min_tissue={value:g}, or tile all of it with tiling.strategy=crop",
        reason=Reason(f"at most {most:.1%} of a patch is tissue", "tiling.min_tissue", value, "most"),
    )
