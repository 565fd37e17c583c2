"""From a file's coordinates to level-0 pixels: scale, affine map, and where (0, 0) of outlines is.

(0, 0) is the slide's corner, or the corner of the area that was scanned.

Some formats (MIRAX, Leica SCN) state the scanned area as OpenSlide's bounds. Where these are smaller than the slide in
both directions, QuPath crops the slide to them and counts from their corner; ASAP and HALO do not.
Source: QuPath's OpenslideImageServer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from distmil.annotations.masks import fits, mask_scale
from distmil.annotations.outlines import Annotation
from distmil.annotations.raster import rasterised
from distmil.annotations.slide_facts import Bounds, Size
from distmil.errors import AnnotationError

_CLEAR = 0.2
"""Difference of the shares of the outlines' area on tissue from which tissue decides."""
_OUTSIDE = 0.01
"""Share of the outlines' area that may lie outside the slide."""
_EXPECTED = {"qupath": "bounds", "asap": "slide", "halo": "slide", "imagescope": "slide"}
_ABSOLUTE = {"ndpa", "patch table", "yolo"}
"""Writers whose coordinates are the slide's own."""


@dataclass(frozen=True)
class Tissue:
    """Where tissue is, to compare outlines with."""

    mask: NDArray[np.bool_]
    """H x W, True = tissue."""
    scale: float
    """Level-0 pixels per pixel of the mask."""


def scaled(
    annotation: Annotation,
    *,
    slide_size: Size,
    bounds: Bounds | None = None,
    scale: float | None = None,
    affine: Sequence[float] | None = None,
) -> Annotation:
    """Bring outlines to the size of level 0; a mask image already is.

    Args:
        annotation: Outlines as the file has them.
        slide_size: Level-0 size of the slide, (width, height).
        bounds: The scanned area, if the slide states one.
        scale: Level-0 pixels per unit of the outlines; None: by the image's size that the file states, else 1.
        affine: a, b, c, d, e, f of x' = a x + b y + c and y' = d x + e y + f, applied after the scale.

    Raises:
        AnnotationError: If the file states an image of other proportions than the slide's and the scanned area's.
    """
    if not annotation.regions:
        return annotation
    (across, down), doubt = ((scale, scale), "") if scale else _stated_scale(annotation.drawn_on, slide_size, bounds)
    a, b, c, d, e, f = affine or (1, 0, 0, 0, 1, 0)
    matrix_23 = np.array([(a * across, b * down, c), (d * across, e * down, f)])
    if (matrix_23 == [(1, 0, 0), (0, 1, 0)]).all():
        return annotation
    regions = {
        group: shapely.transform(region, lambda point_N2: point_N2 @ matrix_23[:, :2].T + matrix_23[:, 2])
        for group, region in annotation.regions.items()
    }
    return replace(annotation, regions=regions, doubts=(*annotation.doubts, *([doubt] if doubt else [])))


def _stated_scale(drawn_on: Size | None, slide_size: Size, bounds: Bounds | None) -> tuple[tuple[float, float], str]:
    """Find the scale by the image that was drawn on, and a doubt where it is another one than the slide."""
    area = (bounds[2], bounds[3]) if bounds else slide_size
    if drawn_on is None or drawn_on in {slide_size, area}:
        return (1.0, 1.0), ""
    size = next((size for size in (slide_size, area) if fits(drawn_on, size)), None)
    shown = f"{drawn_on[0]} x {drawn_on[1]} px"
    if size is None:
        raise AnnotationError(
            f"the annotation: its outlines were drawn on an image of {shown}, and the slide has {slide_size[0]} x "
            f"{slide_size[1]} px, which are different proportions; check that it belongs to this slide, or set "
            "labels.scale"
        )
    scale = mask_scale(drawn_on, size)
    return scale, f"annotation: its outlines were drawn on an image of {shown}, and are scaled by {scale[0]:.4g}"


def place(
    annotation: Annotation,
    *,
    origin: str,
    bounds: Bounds | None,
    slide_size: tuple[int, int],
    tissue: Tissue | None,
) -> tuple[Annotation, str]:
    """Move outlines to level-0 pixels of the slide.

    Args:
        annotation: Outlines as the file has them; a mask image always covers the whole slide.
        origin: ``slide``, ``bounds``, or ``auto``: by the writer, and by which one fits the tissue. A file that states
            its corner needs none of them.
        bounds: The scanned area, if the slide states one.
        slide_size: Level-0 size of the slide, (width, height).
        tissue: Where tissue is, for ``auto``.

    Returns:
        The annotation, and a doubt, "" if there is none.
    """
    if annotation.corner is not None:
        return replace(_moved(annotation, annotation.corner), corner=None), ""
    if bounds is None or bounds[:2] == (0, 0) or origin == "slide" or annotation.writer in _ABSOLUTE:
        return annotation, ""
    if not annotation.regions:
        return annotation, "" if any(annotation.mask_corner) else _mask_doubt(annotation.mask, bounds)
    moved = _moved(annotation, bounds[:2])
    if origin == "bounds":
        return moved, ""
    is_cropped = bounds[2] != slide_size[0] and bounds[3] != slide_size[1]
    written = _EXPECTED.get(annotation.writer, "")
    written = "slide" if written == "bounds" and not is_cropped else written
    found, is_clear, numbers = _fit(list(annotation.regions.values()), list(moved.regions.values()), slide_size, tissue)
    chosen = found if is_clear else (written or "slide")
    is_doubted = not is_clear or bool(written and written != found)
    doubt = _doubt(chosen, written, found if is_clear else "", numbers, bounds) if is_doubted else ""
    return (moved if chosen == "bounds" else annotation), doubt


def _moved(annotation: Annotation, corner: tuple[float, float]) -> Annotation:
    """Move outlines whose (0, 0) is at a level-0 place."""
    by_2 = np.array(corner, dtype=np.float64)
    regions = {
        group: shapely.transform(region, lambda point_N2: point_N2 + by_2)
        for group, region in annotation.regions.items()
    }
    return replace(annotation, regions=regions)


def _mask_doubt(mask: NDArray[np.uint8] | None, bounds: Bounds) -> str:
    """Say that a mask is taken as one of the whole slide, where by its proportions it may be one of the bounds."""
    if mask is None or abs(mask.shape[0] - mask.shape[1] * bounds[3] / bounds[2]) > 1:
        return ""
    return (
        "annotation: its mask is taken as one of the whole slide, and has the proportions of the scanned area "
        f"({bounds[2]} x {bounds[3]} px from ({bounds[0]}, {bounds[1]})), too; look at the report's picture"
    )


def _fit(
    still: Sequence[BaseGeometry], moved: Sequence[BaseGeometry], slide_size: tuple[int, int], tissue: Tissue | None
) -> tuple[str, bool, str]:
    """Find the origin that fits better, whether that is clear, and the numbers."""
    outside = [_share_outside(regions, slide_size) for regions in (still, moved)]
    if (outside[0] > _OUTSIDE) != (outside[1] > _OUTSIDE):
        shown = f"{outside[0]:.0%} of their area lies outside the slide from (0, 0), {outside[1]:.0%} from the bounds"
        return ("bounds" if outside[0] > outside[1] else "slide"), True, shown
    if tissue is None:
        return "", False, "there is no tissue to compare them with"
    shares = [_share_on_tissue(regions, tissue) for regions in (still, moved)]
    shown = f"{shares[0]:.0%} of their area lies on tissue from (0, 0), {shares[1]:.0%} from the bounds"
    return ("bounds" if shares[1] > shares[0] else "slide"), abs(shares[1] - shares[0]) >= _CLEAR, shown


def _share_outside(regions: Sequence[BaseGeometry], slide_size: tuple[int, int]) -> float:
    frame = shapely.box(0, 0, *slide_size)
    inside = sum(float(shapely.intersection(region, frame).area) for region in regions)
    return 1 - inside / sum(float(region.area) for region in regions)


def _share_on_tissue(regions: Sequence[BaseGeometry], tissue: Tissue) -> float:
    shape = (tissue.mask.shape[0], tissue.mask.shape[1])
    marked = np.zeros(shape, dtype=np.bool_)
    for region in regions:
        marked |= rasterised(shapely.transform(region, lambda point_N2: point_N2 / tissue.scale), shape)
    return float((marked & tissue.mask).sum() / max(1, marked.sum()))


def _doubt(chosen: str, written: str, found: str, numbers: str, bounds: Bounds) -> str:
    corners = {"slide": "(0, 0) of the slide", "bounds": f"the corner of its bounds, ({bounds[0]}, {bounds[1]})"}
    reasons = []
    if written:
        reasons.append(f"the program that wrote them counts from {'its bounds' if written == 'bounds' else '(0, 0)'}")
    reasons.append(f"{numbers}, which {'decides' if found else 'is not clear'}")
    return (
        f"annotation: its outlines are taken from {corners[chosen]}: {'; '.join(reasons)}; look at the report's "
        f"picture, and set labels.origin to {'slide' if chosen == 'bounds' else 'bounds'} if they lie beside the tissue"
    )
