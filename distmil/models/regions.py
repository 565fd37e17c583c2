"""The read-out ``regions``: does a lesion of a few neighbouring patches lie anywhere in the slide?

Pooling thins a small lesion out in a large slide, and of thousands of normal patches the highest is high by chance.
Neighbours that are high together are not. Each patch's fused score becomes a likelihood ratio, lesion against normal.
A window of neighbouring patches has the product of its patches' ratios; the slide has the mean over all windows of each
shape, and over the shapes. Among normal patches this mean is expected to be 1 in slides of every size, so that one
threshold serves all. Its share of the odds, mean / (1 + mean), is the probability of a lesion at even prior odds.

N patches of a slide, S slopes; grids are [row, column].

Source: the likelihood ratio of a scan for a signal at an unknown place (Kulldorff 1997, A spatial scan statistic), with
the mean in place of the maximum (Chan 2009, Detection of spatial clustering with average likelihood ratio tests).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from distmil.slides.grid import grid_step

Floats: TypeAlias = NDArray[np.float64]
Gather: TypeAlias = Callable[[Any], Sequence[Any]]
"""From this worker's values to those of all workers."""

WINDOWS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3))
"""Shapes of lesions that are looked for, in (rows, columns) of patches that do not overlap."""
SLOPES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3, 1.7)
FITTED_SLIDES = 100
"""Most slides of a class that the evidence is fitted on."""
_LEAST = 1e-7
_FINEST = 1 / 8
"""Share of a patch's edge: patches nearer to each other lie on no common grid."""


@dataclass(frozen=True)
class Places:
    """Where a slide's patches lie: left and upper edges, and the edge of a patch, in level-0 pixels."""

    x_N: NDArray[np.int32]
    y_N: NDArray[np.int32]
    extent_px: int

    @classmethod
    def of(cls, table: pa.Table) -> "Places":
        """Take the places from a table with the columns x, y, extent_px and at least one row."""
        x_N, y_N = (table[name].to_numpy() for name in ("x", "y"))
        return cls(x_N, y_N, int(table["extent_px"][0].as_py()))


@dataclass(frozen=True)
class PatchEvidence:
    """How much likelier a patch is in a lesion: log ratio = slope x logit(fused) + offset."""

    slope: float
    offset: float

    @classmethod
    def in_row(cls, row: Mapping[str, float | None]) -> "PatchEvidence | None":
        """Take the evidence from an epoch's row of metrics, where it holds one."""
        slope, offset = (row.get(f"val_evidence_{name}") for name in ("slope", "offset"))
        return None if slope is None or offset is None else cls(slope, offset)

    def log_ratio(self, logit_N: Floats) -> Floats:
        """Compute the log likelihood ratio of patches from the logits of their fused scores."""
        return self.slope * logit_N + self.offset


@dataclass(frozen=True)
class ScoreGrid:
    """The logits of a slide's fused scores on the grid of its patches, NaN where there is none.

    Where patches overlap there are several grids, each of patches that do not.
    """

    logits: tuple[Floats, ...]

    @classmethod
    def of(cls, fused_N: ArrayLike, places: Places) -> "ScoreGrid":
        """Lay out the fused scores of a slide's patches, each within 0 and 1."""
        fused = np.clip(np.asarray(fused_N, np.float64), _LEAST, 1 - _LEAST)
        logit_N = np.log(fused) - np.log1p(-fused)
        (column_N, apart_x), (row_N, apart_y) = (
            _cells(edge_N, places.extent_px) for edge_N in (places.x_N, places.y_N)
        )
        grid = np.full((row_N.max() + 1, column_N.max() + 1), -np.inf)
        np.maximum.at(grid, (row_N, column_N), logit_N)
        grid[grid == -np.inf] = np.nan
        return cls(tuple(grid[i::apart_y, j::apart_x] for i in range(apart_y) for j in range(apart_x)))

    @property
    def logit_N(self) -> Floats:
        """Take the logits of all patches, in any order."""
        return np.concatenate([grid[~np.isnan(grid)] for grid in self.logits])

    def log_mean_ratio(self, evidence: PatchEvidence) -> float:
        """Compute the logarithm of the mean likelihood ratio over all windows of patches that are all there."""
        grids = [_Sums.of(evidence.log_ratio(grid)) for grid in self.logits]
        by_shape = []
        for window in WINDOWS:
            log_ratio = np.concatenate([grid.windows(*window) for grid in grids])
            if len(log_ratio):
                by_shape.append(_log_mean(log_ratio))
        return _log_mean(np.array(by_shape))

    def score(self, evidence: PatchEvidence) -> float:
        """Compute the read-out: the probability of a lesion at even prior odds, within 0 and 1."""
        return float(np.exp(-np.logaddexp(0, -self.log_mean_ratio(evidence))))


@dataclass(frozen=True)
class _Sums:
    """Summed areas of a grid, with a first row and column of zeros."""

    value: Floats
    count: NDArray[np.int64]

    @classmethod
    def of(cls, grid: Floats) -> "_Sums":
        is_there = ~np.isnan(grid)
        value, count = np.where(is_there, grid, 0.0), is_there.astype(np.int64)
        return cls(*(np.pad(v, ((1, 0), (1, 0))).cumsum(0).cumsum(1) for v in (value, count)))

    def windows(self, rows: int, columns: int) -> Floats:
        """Sum over each window whose cells are all there."""
        value, count = (
            total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
            for total in (self.value, self.count)
        )
        return np.asarray(value[count == rows * columns], np.float64)


def fit_evidence(grids: Sequence[ScoreGrid], is_positive: Sequence[bool], gather: Gather) -> PatchEvidence | None:
    """Fit the evidence on labelled slides that were not trained on; no patch needs a label.

    For each slope the offset is the one under which the patches of negative slides have a mean ratio of 1. The slope is
    the one under which the slides' labels are likeliest, both classes weighing the same.

    Args:
        grids: This worker's slides.
        is_positive: Whether each is positive.
        gather: From this worker's values to those of all workers.

    Returns:
        The same evidence on every worker; None where a class has no slide.
    """
    slope_S = np.array(SLOPES)
    normal = [grid.logit_N for grid, positive in zip(grids, is_positive, strict=True) if not positive]
    mine = np.concatenate(normal) if normal else np.empty(0)
    totals_S, count = np.full(len(slope_S), -np.inf), 0
    for part_S, size in gather(([_log_sum(slope * mine) for slope in SLOPES], len(mine))):
        totals_S, count = np.logaddexp(totals_S, part_S), count + size
    if not count:
        return None
    ratios = [PatchEvidence(slope, np.log(count) - total) for slope, total in zip(SLOPES, totals_S, strict=True)]
    rows = [(bool(positive), [grid.log_mean_ratio(one) for one in ratios])
            for grid, positive in zip(grids, is_positive, strict=True)]  # fmt: skip
    found = [row for part in gather(rows) for row in part]
    loss_S = np.zeros(len(slope_S))
    for side in (True, False):
        log_ratio = np.array([values for positive, values in found if positive == side])
        if not len(log_ratio):
            return None
        loss_S += np.logaddexp(0, -log_ratio if side else log_ratio).mean(axis=0)
    best = ratios[int(loss_S.argmin())]
    return PatchEvidence(best.slope, float(best.offset))


def fitted_slides(is_positive: Sequence[bool]) -> set[int]:
    """Choose the slides that the evidence is fitted on: all, or about a hundred of each class over the whole list."""
    chosen: set[int] = set()
    for side in (True, False):
        of_class = [i for i, positive in enumerate(is_positive) if positive == side]
        chosen |= set(of_class[:: -(-len(of_class) // FITTED_SLIDES) or 1])
    return chosen


def _cells(edge_N: NDArray[np.int32], extent_px: int) -> tuple[NDArray[np.int64], int]:
    """Number the cells of a grid's axis; beside them, how many cells apart patches no longer overlap.

    Each axis has a step of its own. Patches on no grid lie in cells of a patch's edge.
    """
    step = grid_step(edge_N, edge=extent_px, finest=_FINEST) or extent_px
    return np.round((edge_N - edge_N.min()) / step).astype(np.int64), max(1, round(extent_px / step))


def _log_sum(values: Floats) -> float:
    return float(np.logaddexp.reduce(values)) if len(values) else -np.inf


def _log_mean(values: Floats) -> float:
    peak = values.max()
    return float(peak + np.log(np.exp(values - peak).mean()))
