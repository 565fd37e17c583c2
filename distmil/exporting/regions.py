"""Patches above a threshold joined to regions, each a polygon with its holes.

Two patches are of one region where they share an edge or overlap, directly or through others; patches that touch at a
corner alone are not. A polygon pinched together at a corner would be invalid, in OGC's rules and in shapely.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from distmil.errors import NoResolution
from distmil.exporting.frame import Frame
from distmil.exporting.scores import ScoredPatches

NAMESPACE = uuid.UUID("6f6b3c1e-5d0a-5b0e-9c53-2f2a5f0c7d11")
"""Of the ids of regions and patches."""
Boxes = NDArray[np.int64]
"""N x 4: left, top, right, bottom in level-0 pixels of the slide."""


@dataclass(frozen=True)
class Region:
    """Joined patches of one class."""

    region_id: str
    """A UUID made of the slide, the class and the region's first patch, row by row: a region keeps it as it grows."""
    name: str
    """Of the class."""
    polygon: shapely.Polygon
    """In level-0 pixels of the slide, holes kept."""
    num_patches: int
    area_mm2: float | None
    """None where nobody knows the slide's um per pixel."""
    mean: Mapping[str, float]
    """Mean of each score over the region's patches."""
    top: Mapping[str, float]
    """Highest value of each score."""


def patch_boxes(patches: ScoredPatches, frame: Frame) -> Boxes:
    """Compute each patch's box, cut off at the frame's edges; one that lies outside has no area.

    Where corners were rounded, a patch may end one pixel before the next one begins: it is extended to it.
    """
    right_N = _to_next(patches.x_N, patches.x_N + patches.extent_N)
    bottom_N = _to_next(patches.y_N, patches.y_N + patches.extent_N)
    x_N2 = np.stack([patches.x_N, right_N], axis=1).clip(frame.x, frame.x + frame.width)
    y_N2 = np.stack([patches.y_N, bottom_N], axis=1).clip(frame.y, frame.y + frame.height)
    return np.stack([x_N2[:, 0], y_N2[:, 0], x_N2[:, 1], y_N2[:, 1]], axis=1)


def _to_next(start_N: NDArray[np.int64], end_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Extend ends to the next start, where that is one pixel behind them."""
    starts = np.unique(start_N)
    following = np.searchsorted(starts, start_N, side="right").clip(max=len(starts) - 1)
    return np.asarray(end_N + (starts[following] == end_N + 1))


def has_area(box_N4: Boxes) -> NDArray[np.bool_]:
    """Tell which boxes have an area, N."""
    return np.asarray((box_N4[:, 2] > box_N4[:, 0]) & (box_N4[:, 3] > box_N4[:, 1]))


def find_regions(
    slide_id: str,
    patches: ScoredPatches,
    frame: Frame,
    *,
    threshold: float,
    mpp: float | None,
    min_area_mm2: float = 0.0,
) -> list[Region]:
    """Join the patches whose probability reaches a threshold, class by class.

    Args:
        slide_id: For the regions' ids.
        patches: The slide's patches.
        frame: What lies outside is cut off.
        threshold: Of the probability.
        mpp: Um per level-0 pixel.
        min_area_mm2: Smaller regions are left out.

    Returns:
        Regions, the highest probability on top, then the largest.

    Raises:
        NoResolution: If a minimal area is given, and nobody knows the slide's um per pixel.
    """
    if min_area_mm2 and mpp is None:
        raise NoResolution(
            f"regions below {min_area_mm2:g} mm2 are to be left out, and nobody knows the slide's um per pixel; set "
            "its mpp in the manifest, or export.min_area_mm2=0"
        )
    box_N4 = patch_boxes(patches, frame)
    is_in_N = patches.is_abnormal(threshold) & has_area(box_N4)
    found: list[Region] = []
    for number, name in enumerate(patches.classes):
        chosen = np.flatnonzero(is_in_N & (patches.class_N == number))
        found += _regions_of(slide_id, name, patches, box_N4, chosen, mpp=mpp)
    found = [region for region in found if not min_area_mm2 or (region.area_mm2 or 0) >= min_area_mm2]
    return sorted(found, key=lambda region: (-region.top["probability"], -region.polygon.area, region.region_id))


def _regions_of(
    slide_id: str, name: str, patches: ScoredPatches, box_N4: Boxes, chosen: NDArray[np.intp], *, mpp: float | None
) -> list[Region]:
    """Join chosen patches of one class."""
    if not len(chosen):
        return []
    chosen = chosen[np.lexsort((patches.x_N[chosen], patches.y_N[chosen]))]
    polygons = _joined(box_N4[chosen])
    region_K = _holder(polygons, box_N4[chosen])
    _, first, count = np.unique(region_K, return_index=True, return_counts=True)
    mean = {score: np.bincount(region_K, value_N[chosen]) / count for score, value_N in patches.scores.items()}
    top = {score: _highest(region_K, value_N[chosen]) for score, value_N in patches.scores.items()}
    return [
        Region(
            patch_id(slide_id, patches, int(chosen[first[i]]), name=name),
            name,
            polygon,
            int(count[i]),
            None if mpp is None else polygon.area * mpp**2 / 1e6,
            {score: float(values[i]) for score, values in mean.items()},
            {score: float(values[i]) for score, values in top.items()},
        )
        for i, polygon in enumerate(polygons)
    ]


def _highest(region_K: NDArray[np.intp], value_K: NDArray[np.float32]) -> NDArray[np.float32]:
    """Find the highest value of each region."""
    highest = np.zeros(region_K.max() + 1, np.float32)
    np.maximum.at(highest, region_K, value_K)
    return highest


def _joined(box_K4: Boxes) -> Sequence[shapely.Polygon]:
    """Unite boxes, and drop the corners on straight lines."""
    united = shapely.normalize(shapely.union_all(shapely.box(*box_K4.T)))  # begins at a corner, not on a line
    return list(shapely.orient_polygons(shapely.get_parts(shapely.simplify(united, 0))))


def _holder(polygons: Sequence[shapely.Polygon], box_K4: Boxes) -> NDArray[np.intp]:
    """Find the polygon that each box lies in, K: the one that holds its middle."""
    middle_K2 = (box_K4[:, :2] + box_K4[:, 2:]) / 2
    tree = shapely.STRtree(polygons)
    box, polygon = tree.query(shapely.points(middle_K2), predicate="intersects")
    region_K = np.zeros(len(box_K4), np.intp)
    region_K[box] = polygon
    return region_K


def patch_id(slide_id: str, patches: ScoredPatches, index: int, *, name: str) -> str:
    """Make the UUID of a patch, or of the region of a class that begins with it; it is always the same."""
    place = f"{patches.x_N[index]}/{patches.y_N[index]}/{patches.extent_N[index]}"
    return str(uuid.uuid5(NAMESPACE, f"{slide_id}/{name}/{place}"))
