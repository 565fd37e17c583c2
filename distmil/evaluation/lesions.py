"""The lesions of a slide as CAMELYON16 counts them: marked targets grown, holes filled, joined, isolated cells apart.

Everything is done on a raster of ``PIXEL_UM`` per pixel, cut to what is marked.

Source: Ehteshami Bejnordi et al. 2017, JAMA 318(22), and the challenge's evaluation code, which uses level 5 (7.8 um).
Departure: the raster is of 8 um on every scanner.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from distmil.annotations.raster import rasterised
from distmil.annotations.regions import MarkedRegions, MaskRegions, OutlineRegions, read_regions
from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.errors import AnnotationError
from distmil.labels.slide_outlines import SlideOutlines, groups_of
from distmil.storage.records import Record
from distmil.storage.store import Store

GROWTH_UM = 37.5
"""How far the targets are grown on every side."""
ISOLATED_UM = 275.0
"""Grown lesions whose major axis is shorter are isolated cells: they neither count nor cost."""
PIXEL_UM = 8.0

OUTSIDE, ISOLATED = -1, -2
"""What ``Lesions.at`` says of a point that hits no lesion, or isolated cells."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Lesions:
    """The lesions of one slide."""

    index_HW: NDArray[np.int32]
    """Of each pixel: its lesion from 0 on, ``OUTSIDE`` or ``ISOLATED``."""
    num_lesions: int
    """Isolated cells not counted."""
    num_isolated: int = 0
    origin: tuple[float, float] = (0.0, 0.0)
    """Top-left corner of the raster in level-0 pixels."""
    pixel_px: float = 1.0
    """Edge of its pixels in level-0 pixels."""

    @classmethod
    def none(cls) -> "Lesions":
        """Make the lesions of a slide that has none."""
        return cls(np.empty((0, 0), np.int32), 0)

    def at(self, x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.int32]:
        """Look up the lesion at points in level-0 pixels: its index, ``OUTSIDE`` or ``ISOLATED``, N."""
        column, row = (
            np.floor((np.asarray(place) - start) / self.pixel_px).astype(np.int64)
            for place, start in ((x_N, self.origin[0]), (y_N, self.origin[1]))
        )
        height, width = self.index_HW.shape
        is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = np.full(len(column), OUTSIDE, np.int32)
        found[is_inside] = self.index_HW[row[is_inside], column[is_inside]]
        return found


def known_lesions(slide: Slide, config: Config, store: Store, patches: Record) -> Lesions | None:
    """Find the lesions of a tiled slide; None where they are not all known.

    Args:
        slide: A slide with a label.
        config: Of the job, for classes and groups.
        store: Where its outlines are kept.
        patches: The record of its tiling.

    Raises:
        StorageError: If the store fails.
    """
    if slide.label == 0:
        return Lesions.none()
    if not slide.annotation_complete:
        return None
    try:
        read = SlideOutlines(slide, config, store, patches).read()
        if read is None:
            return None
        number = len(config.cohort.classes)
        regions = read_regions(read.annotation, values=groups_of(config), num_classes=number)
    except (AnnotationError, OSError):  # labels.on_bad_annotation has said what becomes of the slide
        return None
    return lesions_of(regions, mpp=patches.info["mpp"])


def lesions_of(regions: MarkedRegions, *, mpp: float) -> Lesions:
    """Find the lesions among the targets of all classes together.

    Args:
        regions: What is marked on the slide.
        mpp: um per level-0 pixel.
    """
    pixel_px = PIXEL_UM / mpp
    marked, origin = _raster(regions, pixel_px)
    return Lesions.none() if marked is None else lesions_in(marked, origin=origin, pixel_px=pixel_px)


def lesions_in(marked_HW: Mask, *, origin: tuple[float, float], pixel_px: float) -> Lesions:
    """Find the lesions in a raster of ``PIXEL_UM`` per pixel.

    Args:
        marked_HW: Where the target is.
        origin: Its top-left corner in level-0 pixels.
        pixel_px: Edge of its pixels in level-0 pixels.
    """
    margin = int(np.ceil(GROWTH_UM / PIXEL_UM)) + 1
    label_HW = _joined(np.pad(marked_HW, margin))
    num_labels = int(label_HW.max(initial=0))
    is_isolated = np.concatenate([[False], _major_axes(label_HW, num_labels) * PIXEL_UM < ISOLATED_UM])
    index = np.cumsum(~is_isolated) - 2  # of the background: OUTSIDE
    index[is_isolated] = ISOLATED
    return Lesions(
        index.astype(np.int32)[label_HW],
        num_lesions=num_labels - int(is_isolated.sum()),
        num_isolated=int(is_isolated.sum()),
        origin=(origin[0] - margin * pixel_px, origin[1] - margin * pixel_px),
        pixel_px=pixel_px,
    )


def _joined(marked_HW: Mask) -> NDArray[np.int32]:
    """Grow what is marked, fill its holes, and number the 8-connected parts from 1 on."""
    distance = cv2.distanceTransform((~marked_HW).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown = distance < GROWTH_UM / PIXEL_UM
    _, outside = cv2.connectedComponents((~grown).astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    is_hole = ~grown & (outside != outside[0, 0])  # the margin is never marked, and it is one part
    _, label_HW = cv2.connectedComponents((grown | is_hole).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(label_HW, np.int32)


def _major_axes(label_HW: NDArray[np.int32], num_labels: int) -> NDArray[np.float64]:
    """Compute the major axis of every label from 1 on in pixels: of the ellipse with the same second moments."""
    row, column = np.nonzero(label_HW)
    label = label_HW[row, column] - 1

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(label, values, minlength=num_labels) / np.bincount(label, minlength=num_labels)

    down, across = (place - mean(place.astype(float))[label] for place in (row, column))
    yy, xx, xy = mean(down**2), mean(across**2), mean(down * across)
    largest = (yy + xx + np.sqrt((yy - xx) ** 2 + 4 * xy**2)) / 2
    return np.asarray(4 * np.sqrt(largest))


def _raster(regions: MarkedRegions, pixel_px: float) -> tuple[Mask | None, tuple[float, float]]:
    """Mark the pixels of the targets; None where there is no target. The raster's corner is in level-0 pixels."""
    if isinstance(regions, OutlineRegions):
        return _raster_of_outlines(regions, pixel_px)
    assert isinstance(regions, MaskRegions)
    return _raster_of_mask(regions, pixel_px)


def _raster_of_outlines(regions: OutlineRegions, pixel_px: float) -> tuple[Mask | None, tuple[float, float]]:
    targets = list(regions.targets.values())
    if not targets:
        return None, (0.0, 0.0)
    left, top, right, bottom = shapely.total_bounds(targets) / pixel_px
    corner = np.floor([left, top])
    shape = (int(np.ceil(bottom - corner[1])), int(np.ceil(right - corner[0])))
    marked = np.zeros(shape, np.bool_)
    for target in targets:
        marked |= rasterised(shapely.transform(target, lambda point_N2: point_N2 / pixel_px - corner), shape)
    return marked, (float(corner[0] * pixel_px), float(corner[1] * pixel_px))


def _raster_of_mask(regions: MaskRegions, pixel_px: float) -> tuple[Mask | None, tuple[float, float]]:
    is_target = np.isin(regions.mask, [value for value, given in regions.meaning.items() if given > 0])
    rows, columns = np.flatnonzero(is_target.any(axis=1)), np.flatnonzero(is_target.any(axis=0))
    if not len(rows):
        return None, (0.0, 0.0)
    marked, corner = is_target, []
    for axis, (found, scale) in enumerate(((rows, regions.scale[1]), (columns, regions.scale[0]))):
        first = int(found[0] * scale // pixel_px)
        edges = np.arange(first, int(np.ceil((found[-1] + 1) * scale / pixel_px))) * pixel_px / scale
        start = np.clip(edges.astype(np.intp), 0, is_target.shape[axis] - 1)
        # a pixel is marked where any mask pixel begins in it; where mask pixels are larger, by the one it begins in
        end = min(int(found[-1]) + 1, is_target.shape[axis])
        marked = np.logical_or.reduceat(marked[:end] if axis == 0 else marked[:, :end], start, axis=axis)
        corner.append(first * pixel_px)
    left, top = regions.corner
    return marked, (left + float(corner[1]), top + float(corner[0]))
