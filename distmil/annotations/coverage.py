"""How much of each patch a region covers: exact areas, for outlines and for mask images.

x, y and extent_px are level-0 pixels; a share is of the whole patch, also where a padded patch reaches past the image.
"""

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

_LEAF = 32
_SPLIT = 4


def polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """Keep the areas of a geometry, without the points and lines that clipping and repair leave behind."""
    if geometry.geom_type in {"Polygon", "MultiPolygon"}:
        return geometry
    parts = shapely.get_parts(geometry)
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def united(areas: Sequence[BaseGeometry]) -> BaseGeometry:
    """Unite valid polygons; a single polygon is left as it is, which spares large outlines seconds."""
    return areas[0] if len(areas) == 1 else shapely.disjoint_subset_union_all(areas)


def polygon_shares(
    geometry: BaseGeometry, *, x: NDArray[np.int32], y: NDArray[np.int32], extent_px: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Compute the share of every patch that lies inside a polygon.

    The patches are split into ever smaller groups of neighbours, and the polygon is cut to what each group spans: a
    group that it misses or fills is done at once, so that only patches on its border are intersected one by one, with a
    few vertices each.

    Args:
        geometry: A valid Polygon or MultiPolygon.
        x: Left edge of the patches, N; they may overlap and lie in any order.
        y: Top edge, N.
        extent_px: Edge length, N, positive.

    Returns:
        Shares from 0 to 1, N, exact but for rounding in double precision.
    """
    left, top = x.astype(np.float64), y.astype(np.float64)
    box_N4 = np.stack([left, top, left + extent_px, top + extent_px], axis=1)
    whole = extent_px.astype(np.float64) ** 2
    area = np.zeros(len(x))
    pending = [(geometry, np.arange(len(x)))] if len(x) else []
    while pending:
        shape, index = pending.pop()
        bounds = (*box_N4[index, :2].min(axis=0), *box_N4[index, 2:].max(axis=0))
        cut = polygonal(shapely.intersection(shape, shapely.box(*bounds)))
        if cut.is_empty:
            continue
        if cut.area == (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]):
            area[index] = whole[index]
        elif len(index) <= _LEAF:
            area[index] = shapely.area(shapely.intersection(cut, shapely.box(*box_N4[index].T)))
        else:
            pending += [(cut, group) for group in _split(index, box_N4)]
    return np.clip(area / whole, 0.0, 1.0)


def mask_shares(
    is_marked: NDArray[np.bool_],
    *,
    scale: tuple[float, float],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    extent_px: NDArray[np.int32],
    corner: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """Return which share of every patch the marked mask pixels cover; what lies beyond the mask is not marked.

    The sum over a rectangle is four values of the integral image. Between mask pixel edges that image is bilinear, so
    interpolating it weighs a pixel that a patch cuts by the area inside.

    Args:
        is_marked: The mask, height x width, fewer than 2**31 pixels.
        scale: Level-0 pixels per mask pixel, (x, y).
        x: Left edge of the patches, N.
        y: Top edge, N.
        extent_px: Edge length, N, positive.
        corner: Where the mask's corner is, level-0 (x, y).
    """
    height, width = is_marked.shape
    integral = np.zeros((height + 1, width + 1), dtype=np.int32)
    np.cumsum(is_marked, axis=0, dtype=np.int32, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    edges_px = extent_px.astype(np.int64)
    left, right = (np.clip((edge - corner[0]) / scale[0], 0, width) for edge in (x, x + edges_px))
    top, bottom = (np.clip((edge - corner[1]) / scale[1], 0, height) for edge in (y, y + edges_px))
    marked = _lookup(integral, bottom, right) - _lookup(integral, top, right)
    marked -= _lookup(integral, bottom, left) - _lookup(integral, top, left)
    return np.clip(marked * (scale[0] * scale[1]) / extent_px.astype(np.float64) ** 2, 0.0, 1.0)


def _split(index: NDArray[np.intp], box_N4: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Split patches into rows of neighbours and each row into columns, equally many patches in each."""
    rows = np.array_split(index[np.argsort(box_N4[index, 1], kind="stable")], _SPLIT)
    return [column for row in rows for column in np.array_split(row[np.argsort(box_N4[row, 0], kind="stable")], _SPLIT)]


def _lookup(integral: NDArray[np.int32], row: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the integral image bilinearly at fractional rows and columns."""
    top = np.minimum(row.astype(np.intp), integral.shape[0] - 2)
    left = np.minimum(column.astype(np.intp), integral.shape[1] - 2)
    down, across = row - top, column - left
    upper = integral[top, left] * (1 - across) + integral[top, left + 1] * across
    lower = integral[top + 1, left] * (1 - across) + integral[top + 1, left + 1] * across
    value: NDArray[np.float64] = upper * (1 - down) + lower * down
    return value
