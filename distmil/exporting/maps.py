"""Scores as arrays of pixels that lie on a slide: H x W, indexed [row, column], NaN where no patch lies."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.exporting.frame import Frame
from distmil.exporting.scores import ScoredPatches
from distmil.slides.grid import grid_step
from distmil.visualization.score_grid import score_grid

MAX_EDGE_PX = 4096
"""Longest edge of a map for which a reduction is chosen; QuPath shows larger images as pyramids alone."""
_FINEST = 0.25
"""Share of a patch's edge: corners nearer to each other have no pixel each."""

Grid = NDArray[np.float32]


def choose_downsample(frame: Frame) -> int:
    """Choose the smallest power of two by which a frame is reduced to ``MAX_EDGE_PX`` at most."""
    return int(2 ** max(0, math.ceil(math.log2(max(frame.width, frame.height) / MAX_EDGE_PX))))


def map_of(patches: ScoredPatches, name: str, frame: Frame, *, downsample: int) -> Grid:
    """Spread a score over the frame: each pixel has the mean of the patches that cover it.

    Args:
        patches: In level-0 pixels of the slide.
        name: The score.
        frame: What the map shows.
        downsample: Level-0 pixels per pixel of the map.
    """
    width, height = frame.map_size(downsample)
    return score_grid(
        patches.x_N - frame.x,
        patches.y_N - frame.y,
        patches.extent_N,
        patches.scores[name],
        slide_size=(width * downsample, height * downsample),
        map_size=(width, height),
    )


def halved(grid: Grid) -> Grid:
    """Reduce a map by two: means of the pixels that have a score. A started pixel counts."""
    height, width = grid.shape
    full = np.full((height + height % 2, width + width % 2), np.nan, np.float32)
    full[:height, :width] = grid
    quarters = full.reshape(full.shape[0] // 2, 2, full.shape[1] // 2, 2)
    has_score = ~np.isnan(quarters)
    count = has_score.sum(axis=(1, 3))
    total = np.where(has_score, quarters, 0).sum(axis=(1, 3), dtype=np.float64)
    reduced: Any = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.asarray(reduced, np.float32)


def pyramid(grid: Grid, *, tile_px: int) -> list[Grid]:
    """List a map and its reductions by 2, 4, 8, ..., until one fits into a tile."""
    levels = [grid]
    while max(levels[-1].shape) > tile_px:
        levels.append(halved(levels[-1]))
    return levels


def step_of(patches: ScoredPatches) -> float:
    """Find the distance of neighbouring patches in level-0 pixels; where they lie on no grid, the patch's edge."""
    edge = float(patches.extent_N.min())
    return grid_step(patches.x_N, patches.y_N, edge=edge, finest=_FINEST) or edge


def values_of(patches: ScoredPatches, name: str, frame: Frame, *, step: float) -> Grid:
    """Write a score into one pixel a patch, at most half a pixel from the patch's place.

    On a grid every patch has a pixel of its own, which holds the table's value. Of several patches in one pixel, which
    other tools' tiles may give, it is the mean.

    Args:
        patches: In level-0 pixels of the slide.
        name: The score.
        frame: What the map shows.
        step: Level-0 pixels per pixel of the map; see ``step_of``.
    """
    width, height = frame.map_size(step)
    column_N, row_N = _cells(patches.x_N, frame.x, step), _cells(patches.y_N, frame.y, step)
    is_inside = (column_N >= 0) & (column_N < width) & (row_N >= 0) & (row_N < height)
    pixel = (row_N * width + column_N)[is_inside]
    count = np.bincount(pixel, minlength=width * height)
    total = np.bincount(pixel, patches.scores[name][is_inside].astype(np.float64), minlength=width * height)
    values: Any = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.asarray(values.reshape(height, width), np.float32)


def _cells(corner_N: NDArray[np.int64], start: int, step: float) -> NDArray[np.int64]:
    """Find the pixel of each corner along an axis: counted from the first corner, whose own pixel is the nearest."""
    first = corner_N.min()
    return np.asarray(np.rint((corner_N - first) / step) + np.floor((first - start) / step + 0.5), np.int64)
