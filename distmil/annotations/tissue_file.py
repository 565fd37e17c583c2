"""Tissue masks that a person made: outlines or a mask image, brought to the grid of a slide's overview.

Every group of outlines counts as tissue, normal tissue and targets alike, and so do outlines without a group; areas to
be ignored (``IGNORED``) are cut out of them. Every value of a mask image but 0 counts. Lengths here are mask pixels,
one of which is ``scale`` level-0 pixels; a mask starts at level-0 (0, 0).
"""

from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from distmil.annotations import origin
from distmil.annotations.outlines import Annotation
from distmil.annotations.raster import inside, rasterised
from distmil.annotations.reader import read_for
from distmil.annotations.regions import group_key
from distmil.annotations.slide_facts import Bounds, SlideFacts
from distmil.errors import AnnotationError
from distmil.slides.tissue import detect_tissue

Mask = NDArray[np.bool_]

IGNORED = frozenset(
    {"ignore", "ignore*", "exclude", "exclusion", "_2", "hole", "holes", "background", "glass", "artifact", "artefact"}
)
"""Groups, in lower case, whose outlines are not tissue."""


def read_tissue(
    path: Path,
    *,
    slide_size: tuple[int, int],
    shape: tuple[int, int],
    scale: float,
    bounds: Bounds | None = None,
    picture: NDArray[np.uint8] | None = None,
) -> tuple[Mask, tuple[str, ...]]:
    """Read a tissue mask, H x W, True = tissue.

    A pixel is tissue where its centre lies inside an outline and in no area to be ignored, or where half of it is
    marked in a mask image; an outline too small or too thin to hold a centre marks one pixel.

    Args:
        path: ASAP XML, GeoJSON or a mask image; its name never appears in messages.
        slide_size: Level-0 size of the slide, (width, height).
        shape: Height and width of the mask.
        scale: Level-0 pixels per pixel of the mask.
        bounds: The scanned area, if the slide states one.
        picture: RGB, H x W x 3, to find by tissue where the outlines' (0, 0) is, if the slide states bounds.

    Returns:
        The mask and doubts.

    Raises:
        AnnotationError: If the file cannot be read, marks nothing, or marks nothing on the slide.
    """
    annotation = origin.scaled(
        read_for(path, SlideFacts(slide_size, bounds=bounds)), slide_size=slide_size, bounds=bounds
    )
    if annotation.mask is not None:
        mask, doubt = _resampled(annotation, shape=shape, scale=scale), ""
        where = "every value of it is 0"
    else:
        seen = origin.Tissue(detect_tissue(picture).mask, scale) if bounds and picture is not None else None
        annotation, doubt = origin.place(annotation, origin="auto", bounds=bounds, slide_size=slide_size, tissue=seen)
        mask = _painted(annotation, shape=shape, scale=scale)
        where = _whereabouts(annotation, slide_size)
    if not mask.any():
        raise AnnotationError(
            f"the tissue file marks no tissue, {where}; expected areas in level-0 pixels of this slide, or a mask "
            "image of it: check that the file belongs to the slide, or leave it out to have tissue detected"
        )
    left_out = f"annotation: {annotation.dropped_text}" if annotation.dropped_text else ""
    texts = (*annotation.doubts, doubt, left_out)
    return mask, tuple(text.replace("annotation:", "tissue file:", 1) for text in texts if text)


def _painted(annotation: Annotation, *, shape: tuple[int, int], scale: float) -> Mask:
    """Paint the outlines of tissue, and cut out those to be ignored."""
    tissue, ignored = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    for group, region in annotation.regions.items():
        painted = rasterised(shapely.transform(region, lambda point_N2: point_N2 / scale), shape)
        if group_key(group) in IGNORED:
            ignored |= painted
        else:
            tissue |= painted
    return tissue & ~ignored


def _whereabouts(annotation: Annotation, slide_size: tuple[int, int]) -> str:
    """Word why the outlines mark nothing on the slide."""
    if not annotation.regions:
        return f"it holds no area ({annotation.dropped_text or 'it is empty'})"
    if all(group_key(group) in IGNORED for group in annotation.regions):
        return "all of its areas are to be ignored"
    left, top, right, bottom = shapely.total_bounds(list(annotation.regions.values()))
    span = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
    return f"its outlines span {span}, outside the slide of {slide_size[0]} x {slide_size[1]} px"


def _resampled(annotation: Annotation, *, shape: tuple[int, int], scale: float) -> Mask:
    """Bring a mask image to another grid: area-averaged where that is coarser, then taken at the pixels' centres."""
    assert annotation.mask is not None
    marked = (annotation.mask > 0).view(np.uint8)
    height, width = marked.shape
    across, down = (ratio / scale for ratio in annotation.mask_scale)
    size = tuple(max(1, min(edge, round(edge * ratio))) for edge, ratio in ((width, across), (height, down)))
    halves = cv2.resize(marked * 255, size, interpolation=cv2.INTER_AREA) >= 128
    left, top = (edge / scale for edge in annotation.mask_corner)
    rows = np.floor((np.arange(shape[0]) + 0.5 - top) / down * halves.shape[0] / height).astype(np.intp)
    columns = np.floor((np.arange(shape[1]) + 0.5 - left) / across * halves.shape[1] / width).astype(np.intp)
    rows, columns = (np.clip(index, -1, edge) for index, edge in ((rows, size[1]), (columns, size[0])))
    mask = np.pad(halves, ((0, 1), (0, 1)))[rows][:, columns]  # -1 and the edge: beside the mask
    if not mask.any():  # marks smaller than half a pixel each
        row, column = np.nonzero(marked)
        mask[inside(row + 0.5 + top / down, down, shape[0]), inside(column + 0.5 + left / across, across, shape[1])] = (
            True
        )
    return np.asarray(mask)
