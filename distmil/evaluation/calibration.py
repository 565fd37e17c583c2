"""Calibration: whether 8 of 10 slides with the probability 0.8 are abnormal, and a temperature that brings it nearer.

S slides, B bins of equal width, D draws.

Sources: Naeini et al. 2015 (expected calibration error); Guo et al. 2017 (temperature scaling).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from distmil.evaluation.intervals import Bootstrap, Interval
from distmil.evaluation.metrics import LabelledScores
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import logit

NUM_BINS = 10
MIN_SLIDES = 10
"""Fewest slides that a temperature is fitted to."""
MAX_SCALE = 20.0
"""A temperature is sought from 1 / 20 to 20."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from the shares of abnormal slides."""

    error: float
    """Expected calibration error."""
    brier: float
    error_interval: Interval | None
    brier_interval: Interval | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The reliability table: of each bin that holds slides its bounds, slides, mean probability and share abnormal."""


def calibration_of(is_positive_S: ArrayLike, probability_S: ArrayLike, bootstrap: Bootstrap) -> Calibration:
    """Measure the calibration of slides.

    Args:
        is_positive_S: Whether each slide is abnormal.
        probability_S: Its probability.
        bootstrap: Draws of the patients of these slides.
    """
    is_positive, probability = np.asarray(is_positive_S, bool), np.asarray(probability_S, np.float64)
    bin_S = np.minimum((probability * NUM_BINS).astype(np.intp), NUM_BINS - 1)
    squared = (probability - is_positive) ** 2
    whole = Bootstrap(np.zeros(len(probability), np.intp), np.ones((1, 1)))
    (error,), drawn_D = (_error(draws, bin_S, probability - is_positive) for draws in (whole, bootstrap))
    return Calibration(
        error=float(error),
        brier=float(squared.mean()),
        error_interval=bootstrap.bounds(drawn_D),
        brier_interval=bootstrap.mean(np.arange(len(squared)), squared),
        rows=[_row(i, np.flatnonzero(bin_S == i), is_positive, probability, bootstrap) for i in np.unique(bin_S)],
    )


def _error(draws: Bootstrap, bin_S: NDArray[np.intp], gap_S: Floats) -> Floats:
    """Compute the expected calibration error of each draw, D: the weighted mean of the bins' mean gaps."""
    gap_BD = np.stack([draws.sums(gap_S * (bin_S == i), draws.patient_S) for i in range(NUM_BINS)])
    return np.asarray(np.abs(gap_BD).sum(axis=0) / draws.sums(np.ones(len(gap_S)), draws.patient_S))


def _row(
    i: int, slide_M: NDArray[np.intp], is_positive_S: NDArray[np.bool_], probability_S: Floats, bootstrap: Bootstrap
) -> dict[str, Any]:
    low, high = bootstrap.mean(slide_M, is_positive_S[slide_M]) or (None, None)
    return {
        "from": i / NUM_BINS,
        "to": (i + 1) / NUM_BINS,
        "slides": len(slide_M),
        "mean_probability": float(probability_S[slide_M].mean()),
        "share_abnormal": float(is_positive_S[slide_M].mean()),
        "low": low,
        "high": high,
    }


def fit_temperature(is_positive_S: ArrayLike, probability_S: ArrayLike) -> float | None:
    """Find the temperature by which the log-odds are divided so that the cross entropy is least.

    Args:
        is_positive_S: Whether each validation slide is abnormal.
        probability_S: Its probability.

    Returns:
        None where there are fewer than ``MIN_SLIDES`` slides or one class, a probability is not finite, or the search
        ends at a limit: slides told apart without a mistake, or not at all, do not say how sure to be.
    """
    is_positive, probability = np.asarray(is_positive_S, bool), np.asarray(probability_S, np.float64)
    if (
        len(probability) < MIN_SLIDES
        or is_positive.all()
        or not is_positive.any()
        or not np.isfinite(probability).all()
    ):
        return None
    signed_S = np.where(is_positive, 1, -1) * logit(probability)

    def slope(scale: float) -> float:  # of the cross entropy by the factor exp(scale) of the log-odds; it only rises
        return float(-(signed_S * expit(-np.exp(scale) * signed_S)).mean())

    limit = np.log(MAX_SCALE)
    if not slope(-limit) < 0 < slope(limit):
        return None
    return float(np.exp(-brentq(slope, -limit, limit, xtol=1e-12)))


def choose_temperatures(rows: Sequence[LabelledScores]) -> dict[str, float | None]:
    """Fit the temperature of every read-out to validation slides: temperature_<read-out>; nothing without rows."""
    is_positive = [row.label > 0 for row in rows]
    return {
        f"temperature_{name}": fit_temperature(is_positive, [row.read_outs[i] for row in rows])
        for i, name in enumerate(READ_OUTS if rows else ())
    }
