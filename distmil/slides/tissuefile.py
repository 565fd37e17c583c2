"""Tissue masks that a person made: outlines or a mask image, brought to the grid of a slide's overview.

Every group of outlines counts as tissue, as does every value of a mask image but 0. Lengths here are mask pixels, one
of which is ``scale`` level-0 pixels; a mask starts at level-0 (0, 0).
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from distmil.errors import AnnotationError
from distmil.slides.annotations import Annotation, read_annotation

Mask = NDArray[np.bool_]


def read_tissue(path: Path, *, slide_size: tuple[int, int], shape: tuple[int, int], scale: float) -> Mask:
    """Read a tissue mask, H x W, True = tissue.

    A pixel is tissue where its centre lies inside an outline, or where half of it is marked in a mask image; an outline
    too small or too thin to hold a centre marks one pixel.

    Args:
        path: ASAP XML, QuPath GeoJSON or a mask image; only its name appears in messages.
        slide_size: Level-0 size of the slide, (width, height).
        shape: Height and width of the mask.
        scale: Level-0 pixels per pixel of the mask.

    Raises:
        AnnotationError: If the file cannot be read, marks nothing, or marks nothing on the slide.
    """
    annotation = read_annotation(path, slide_size=slide_size)
    if annotation.mask is not None:
        mask = _resampled(annotation, shape=shape, scale=scale)
        where = "every value of it is 0"
    else:
        mask = np.zeros(shape, dtype=np.bool_)
        for region in annotation.regions.values():
            mask |= _rasterised(shapely.transform(region, lambda point_N2: point_N2 / scale), shape)
        where = _whereabouts(annotation, slide_size)
    if not mask.any():
        raise AnnotationError(
            f"{path.name}: the tissue file marks no tissue, {where}; expected areas in level-0 pixels of this slide, "
            "or a mask image of it: check that the file belongs to the slide, or leave it out to have tissue detected"
        )
    return mask


def _whereabouts(annotation: Annotation, slide_size: tuple[int, int]) -> str:
    """Say what outlines that mark nothing on the slide do instead."""
    if not annotation.regions:
        return f"it holds no area ({annotation.num_dropped} points, lines, detections or other marks without one)"
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
    rows = ((np.arange(shape[0]) + 0.5) / down * halves.shape[0] / height).astype(np.intp)
    columns = ((np.arange(shape[1]) + 0.5) / across * halves.shape[1] / width).astype(np.intp)
    mask = np.pad(halves, ((0, 1), (0, 1)))[np.minimum(rows, size[1])][:, np.minimum(columns, size[0])]
    if not mask.any():  # marks smaller than half a pixel each
        row, column = np.nonzero(marked)
        mask[_inside(row + 0.5, down, shape[0]), _inside(column + 0.5, across, shape[1])] = True
    return np.asarray(mask)


def _inside(position_N: NDArray[Any], ratio: float, length: int) -> NDArray[np.intp]:
    """Return the pixels that positions fall on, those on the far border the last."""
    return np.minimum((position_N * ratio).astype(np.intp), length - 1)


def _rasterised(region: BaseGeometry, shape: tuple[int, int]) -> Mask:
    """Mark the pixels whose centres lie inside a valid (Multi)Polygon, by the even-odd rule.

    An edge flips all that lies to the right of it in the rows it crosses.
    """
    parts = shapely.get_parts(region)
    rings = map(shapely.get_coordinates, shapely.get_rings(parts))
    edge_N4 = np.concatenate([np.hstack([point_N2[:-1], point_N2[1:]]) for point_N2 in rings])
    first, last = np.ceil(np.sort(edge_N4[:, 1::2], axis=1) - 0.5).clip(0, shape[0]).astype(np.intp).T
    counts = last - first
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    left, top, right, bottom = np.repeat(edge_N4, counts, axis=0).T
    crossing = left + (row + 0.5 - top) / (bottom - top) * (right - left)
    flips = np.zeros((shape[0], shape[1] + 1), np.uint8)
    np.bitwise_xor.at(flips, (row, np.ceil(crossing - 0.5).clip(0, shape[1]).astype(np.intp)), 1)
    mask = np.bitwise_xor.accumulate(flips, axis=1)[:, :-1] > 0
    thin = parts[shapely.area(parts) <= shapely.length(parts) / 2]  # these may fall between the centres
    thin = shapely.intersection(thin, shapely.box(0, 0, shape[1], shape[0]))
    points = shapely.get_coordinates(shapely.point_on_surface(thin[shapely.area(thin) > 0]))
    mask[_inside(points[:, 1], 1.0, shape[0]), _inside(points[:, 0], 1.0, shape[1])] = True
    return np.asarray(mask)
