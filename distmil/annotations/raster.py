"""Areas to pixels: which pixels of a grid lie inside an outline.

OpenCV's ``fillPoly`` also marks the pixels that an edge touches, which widens every area.
"""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

Mask = NDArray[np.bool_]


def inside(position_N: NDArray[Any], ratio: float, length: int) -> NDArray[np.intp]:
    """Find the pixels that positions fall on; a position on the far border falls on the last pixel."""
    return np.minimum((position_N * ratio).astype(np.intp), length - 1)


def rasterised(region: BaseGeometry, shape: tuple[int, int]) -> Mask:
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
    mask[inside(points[:, 1], 1.0, shape[0]), inside(points[:, 0], 1.0, shape[1])] = True
    return np.asarray(mask)
