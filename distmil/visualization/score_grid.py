"""Patch scores spread over a thumbnail's pixels. Arrays are indexed [row, column]; sizes are (width, height)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distmil.visualization.boxes import Boxes, sum_boxes

Values = NDArray[np.float64]
Indices = NDArray[np.intp]


def score_grid(
    x: ArrayLike,
    y: ArrayLike,
    extent_px: ArrayLike,
    score: ArrayLike,
    *,
    slide_size: tuple[int, int],
    map_size: tuple[int, int],
) -> NDArray[np.float32]:
    """Average the scores of the patches that cover each pixel of a map.

    Args:
        x: Left edges in level-0 pixels, N.
        y: Top edges in level-0 pixels, N.
        extent_px: Level-0 edge of every patch, or one for all.
        score: Scores in [0, 1], N.
        slide_size: Slide (width, height) in level-0 pixels; what hangs over is cut off.
        map_size: Map (width, height) in pixels.

    Returns:
        Mean scores, map height x width, NaN where no patch lies. A patch covers at least one pixel.

    Raises:
        ValueError: If lengths differ, an extent is not positive, or a score is outside [0, 1] or not finite.
    """
    x, y, score = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(score, np.float64)
    if not x.shape == y.shape == score.shape == (x.size,):
        raise ValueError(
            f"x, y and score must be lists of one length, not of shapes {x.shape}, {y.shape}, {score.shape}"
        )
    extent = np.broadcast_to(np.asarray(extent_px, np.float64), x.shape)
    if (extent <= 0).any():
        raise ValueError(f"extent_px must be positive, not {extent.min()}")
    check_scores(score)
    left, right = _span(x, extent, slide_size[0], map_size[0])
    top, bottom = _span(y, extent, slide_size[1], map_size[1])
    boxes, shape = Boxes(left, top, right, bottom), (map_size[1], map_size[0])
    total, count = sum_boxes(boxes, score, shape), sum_boxes(boxes, 1, shape)
    grid = np.full(shape, np.nan, np.float32)
    covered = count > 0  # exact, while the total carries errors of about 1e-12, which must not leave the scores' range
    grid[covered] = (total[covered] / count[covered]).clip(score.min(initial=1), score.max(initial=0))
    return grid


def check_scores(score: NDArray[np.floating]) -> None:
    """Raise ValueError if a score is not a number in [0, 1]."""
    wrong = score[~((score >= 0) & (score <= 1))]
    if wrong.size:
        raise ValueError(f"{wrong.size} of {score.size} scores lie outside [0, 1] or are not finite, e.g. {wrong[0]}")


def _span(start: Values, extent: Values, slide_px: int, map_px: int) -> tuple[Indices, Indices]:
    """Find each patch's first map pixel along an axis and the pixel after its last; equal where it is off the slide."""
    scale = map_px / slide_px
    first = np.rint(start * scale).clip(0, map_px - 1)
    last = np.rint((start + extent) * scale).clip(first + 1, map_px)
    is_inside = (start < slide_px) & (start + extent > 0)
    return first.astype(np.intp), np.where(is_inside, last, first).astype(np.intp)
