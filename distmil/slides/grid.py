"""Where patches lie: pure geometry of levels, extents and corners.

Every grid is anchored at level-0 (0, 0); a corner is round(i x stride), never a running sum, so that rounding does not
drift. Tuples are (x, y) and (width, height) in level-0 pixels unless a name says otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.errors import Reason, TooCoarse, TooSmall

Box = tuple[int, int, int, int]
FACTORS = (2, 4)
"""Whole-number reductions of a level that count as a resolution of their own."""
_ROUNDING = 1e-9
_FAR = 4
"""Times the smallest gap between corners from which the number of steps in a gap is not certain."""


@dataclass(frozen=True)
class ReadPlan:
    """How one patch is read: from which level, how large, and what it covers."""

    level: int
    read_px: int
    """Edge to read at that level."""
    extent_px: int
    """Edge in level-0 pixels."""
    stride: float
    """Distance between patches in level-0 pixels."""
    mpp: float | None
    """Resolution of the stored patch; None in pixel mode."""


def plan_read(
    downsamples: Sequence[float],
    *,
    slide_mpp: float | None,
    mpp: float | None,
    tolerance: float,
    patch_px: int,
    stride_px: int,
) -> ReadPlan:
    """Choose the level that patches of ``patch_px`` at ``mpp`` are read from.

    A level within ``tolerance`` of the wanted resolution is taken as it is; else a level whose two- or four-fold
    reduction is within it, which keeps patches on whole pixels; else the nearest finer one is read and resampled.

    Args:
        downsamples: Level-0 pixels per pixel of each level.
        slide_mpp: Resolution of level 0; None in pixel mode.
        mpp: Wanted resolution; None works in level-0 pixels.
        tolerance: Relative difference that counts as met.
        patch_px: Edge of the stored patch.
        stride_px: Stride in pixels of the stored patch.

    Raises:
        TooCoarse: If level 0 is coarser than wanted.
    """
    if mpp is None or slide_mpp is None:
        return ReadPlan(level=0, read_px=patch_px, extent_px=patch_px, stride=stride_px, mpp=slide_mpp)
    ratios = [slide_mpp * downsample / mpp for downsample in downsamples]
    for factor in (1, *FACTORS):
        level = min(range(len(ratios)), key=lambda i: abs(math.log(ratios[i] * factor)))
        if abs(ratios[level] * factor - 1) <= tolerance + _ROUNDING:
            scale = downsamples[level] * factor
            extent_px = round(patch_px * scale)
            return ReadPlan(level, patch_px * factor, extent_px, stride_px * scale, slide_mpp * scale)
    finer = [i for i, ratio in enumerate(ratios) if ratio < 1]
    if not finer:
        value = rounded(slide_mpp, up=True)
        raise TooCoarse(
            f"the file's finest resolution is {slide_mpp:.4g} um/px, coarser than the wanted {mpp:.4g} um/px; "
            f"set tiling.mpp={value:g}, or correct the slide's mpp in the manifest if the file states it wrongly",
            reason=Reason(f"finest {slide_mpp:.4g} um/px", "tiling.mpp", value, "least"),
        )
    level = max(finer, key=lambda i: ratios[i])
    scale = mpp / slide_mpp
    extent_px = round(patch_px * scale)
    read_px = max(1, round(extent_px / downsamples[level]))
    return ReadPlan(level, read_px, extent_px, stride_px * scale, slide_mpp * extent_px / patch_px)


def lay_grid(
    size: tuple[int, int], *, strategy: str, extent_px: int, stride: float, foreground: Box | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lay out the patches' corners x and y, row by row.

    Args:
        size: Slide (width, height).
        strategy: ``pad``, ``crop`` or ``foreground``.
        extent_px: Patch edge.
        stride: Distance between patches.
        foreground: The rectangle (left, top, right, bottom) of the tissue, for ``foreground``.

    Raises:
        TooSmall: If the image is smaller than one patch, except under ``pad``.
    """
    width, height = size
    if strategy != "pad" and min(size) < extent_px:
        raise TooSmall(
            f"the image is {width} x {height} px, smaller than one patch of {extent_px} px at level 0; "
            "tiling.strategy=pad fills it up",
            reason=Reason(f"{width} x {height} px, less than a patch of {extent_px} px", "tiling.strategy", "pad"),
        )
    if strategy == "crop":
        columns, rows = _inside(width, extent_px, stride), _inside(height, extent_px, stride)
    else:
        left, top, right, bottom = foreground or (0, 0, width, height)
        columns, rows = _covering(left, right, extent_px, stride), _covering(top, bottom, extent_px, stride)
    grid_y, grid_x = np.meshgrid(np.array(rows, np.int32), np.array(columns, np.int32), indexing="ij")
    return grid_x.ravel(), grid_y.ravel()


def _inside(length: int, edge: int, stride: float) -> list[int]:
    """Keep the corners whose patches end inside."""
    count = max(0, math.floor((length - edge) / stride) + 2)
    return [corner for corner in (round(i * stride) for i in range(count)) if corner + edge <= length]


def _covering(start: int, stop: int, edge: int, stride: float) -> list[int]:
    """Find the fewest grid corners whose patches cover [start, stop)."""
    first = math.floor(start / stride) + 1
    while round(first * stride) > start:
        first -= 1
    found = [round(first * stride)]
    while found[-1] + edge < stop:
        first += 1
        found.append(round(first * stride))
    return found


def grid_step(*corners: NDArray[np.integer[Any]], edge: float, finest: float) -> float | None:
    """Find the step of the grid that corners lie on, to a fraction of a pixel: corners are rounded.

    It is the largest number of which the gaps between corners are multiples.

    Args:
        corners: Along each axis that shares the step, in level-0 pixels, in any order.
        edge: Of a patch.
        finest: Smallest step of a grid as a share of the edge.

    Returns:
        None where the corners lie on no common grid, where its step would be finer, or where no axis has a gap.
    """
    gap_K = np.concatenate([np.diff(np.unique(corner_N)) for corner_N in corners]).astype(np.float64)
    if not len(gap_K):
        return None
    near_K = gap_K[gap_K <= _FAR * gap_K.min()]
    for parts in range(1, 1 + int(near_K.min() / (finest * edge))):
        step = near_K.min() / parts
        steps_K = np.rint(near_K / step)
        if (np.abs(near_K - steps_K * step) <= 1 + steps_K / parts).all():  # the least gap may be a pixel off, too
            return float(near_K.sum() / steps_K.sum())
    return None


def snapped(box: Box, *, tile: tuple[float, float], size: tuple[int, int]) -> Box:
    """Find the smallest rectangle of whole tiles, cut at the slide's edge, that holds another rectangle.

    Args:
        box: Left, top, right, bottom.
        tile: Width and height of a tile in level-0 pixels.
        size: Slide (width, height).
    """
    left, top = (math.floor(box[i] / tile[i]) * tile[i] for i in (0, 1))
    right, bottom = (min(math.ceil(box[i + 2] / tile[i]) * tile[i], size[i]) for i in (0, 1))
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def banded(x: NDArray[np.int32], y: NDArray[np.int32], *, width_px: float) -> NDArray[np.intp]:
    """Order patches so that they walk down one band of columns after the other.

    Neighbours in the order are neighbours on the slide in both directions, so that a run of them touches few of the
    file's tiles, however wide the slide is.

    Args:
        x: Left edges, N.
        y: Top edges, N.
        width_px: Width of a band in level-0 pixels.
    """
    return np.lexsort((x, y, np.floor_divide(x, width_px)))


def rounded(value: float, *, up: bool) -> float:
    """Round to a number that a user can write, and that still fits: four digits, never past the value.

    Args:
        value: 0 or above.
        up: Round up, else down; by 1e-9 the value may be missed, which is rounding in floating point.
    """
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    steps = value / step
    whole = math.ceil(steps * (1 - 1e-9)) if up else math.floor(steps * (1 + 1e-9))
    return float(f"{whole * step:.4g}")
