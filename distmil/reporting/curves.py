"""ROC and precision-recall curves of slides, and the bands that 95 % of the draws of patients lie in.

S slides, T thresholds, D draws, G places on a curve's x axis.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distmil.evaluation.intervals import MAX_BINS, Bootstrap

PLACES = np.linspace(0, 1, 101)
MOST_POINTS = 1000
"""Of a curve: more would not be seen."""
_ROUNDING = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A curve, and its band."""

    x_T: Floats
    y_T: Floats
    low_G: Floats | None
    """The band's lower edge at ``PLACES``; None where fewer than two patients leave nothing to draw."""
    high_G: Floats | None


def roc(is_positive_S: ArrayLike, score_S: ArrayLike, bootstrap: Bootstrap) -> Curve | None:
    """Trace the sensitivity over the share of false positives, straight from threshold to threshold.

    Args:
        is_positive_S: Whether each slide is abnormal.
        score_S: Its score.
        bootstrap: Draws of the patients of these slides.

    Returns:
        The curve from (0, 0) to (1, 1); None where there is one class only.
    """
    counted = _counted(is_positive_S, score_S, bootstrap)
    if counted is None:
        return None
    (found_T, false_T), (found_TD, false_TD) = counted
    return Curve(*_thinned(false_T, found_T), *_edges(false_TD, found_TD, bootstrap))


def precision_recall(is_positive_S: ArrayLike, score_S: ArrayLike, bootstrap: Bootstrap) -> Curve | None:
    """Trace the precision over the sensitivity in steps, the area below which is the average precision.

    Args:
        is_positive_S: Whether each slide is abnormal.
        score_S: Its score.
        bootstrap: Draws of the patients of these slides.

    Returns:
        The curve from sensitivity 0 to 1; None where there is one class only.
    """
    counted = _counted(is_positive_S, score_S, bootstrap)
    if counted is None:
        return None
    positive = np.asarray(is_positive_S, bool)
    (found_T, false_T), (found_TD, false_TD) = counted
    precision_T = _precision(found_T[1:] * positive.sum(), false_T[1:] * (~positive).sum())
    num = int(np.argmax(found_T == 1))  # later thresholds find nothing more
    corners = np.repeat(found_T[: num + 1], 2)[1:-1], np.repeat(precision_T[:num], 2)
    number_2D = [bootstrap.sums(chosen, bootstrap.patient_S) for chosen in (positive, ~positive)]
    precision_TD = _precision(found_TD[1:] * number_2D[0], false_TD[1:] * number_2D[1])
    return Curve(*_thinned(*corners), *_step_edges(found_TD[1:], precision_TD, bootstrap))


def _counted(
    is_positive_S: ArrayLike, score_S: ArrayLike, bootstrap: Bootstrap
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]] | None:
    """Compute the shares of positive and of negative slides from each threshold on, T + 1 from 0 to 1; in each draw."""
    positive, score = np.asarray(is_positive_S, bool), np.asarray(score_S, np.float64)
    if not 0 < positive.sum() < len(positive) or np.isnan(score).any():
        return None
    _, exact_S = np.unique(-score, return_inverse=True)
    coarse_S = exact_S * min(1.0, MAX_BINS / (exact_S.max() + 1))  # many thresholds of many draws would not fit
    slide_S = np.arange(len(score))
    whole = Bootstrap(np.zeros(len(score), np.intp), np.ones((1, 1)))
    found = []
    for draws, bin_S in ((whole, exact_S), (bootstrap, coarse_S.astype(np.intp))):
        shares, num_bins = [], int(bin_S.max()) + 1
        for chosen in (positive, ~positive):
            count_TD = np.pad(draws.counts(slide_S[chosen], bin_S[chosen], num_bins).cumsum(axis=0), ((1, 0), (0, 0)))
            with np.errstate(invalid="ignore"):
                shares.append(count_TD / count_TD[-1])  # NaN in draws of one class
        found.append(shares)
    (found_T1, false_T1), (found_TD, false_TD) = found
    return (found_T1[:, 0], false_T1[:, 0]), (found_TD, false_TD)


def _precision(found: Floats, false: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(found / (found + false))


def _edges(x_TD: Floats, y_TD: Floats, bootstrap: Bootstrap) -> tuple[Floats | None, Floats | None]:
    """Bound the curves of the draws at ``PLACES``; where a curve goes straight up, its upper end counts."""
    drawn = [
        np.interp(PLACES + _ROUNDING, x_T, y_T)
        for x_T, y_T in zip(x_TD.T, y_TD.T, strict=True)
        if np.isfinite(x_T).all() and np.isfinite(y_T).all()
    ]
    return _bounds(drawn, bootstrap)


def _step_edges(recall_TD: Floats, precision_TD: Floats, bootstrap: Bootstrap) -> tuple[Floats | None, Floats | None]:
    """Bound the steps of the draws at ``PLACES``: the precision of the first threshold of at least that recall."""
    drawn = []
    for recall_T, precision_T in zip(recall_TD.T, precision_TD.T, strict=True):
        if np.isfinite(recall_T).all():
            drawn.append(
                precision_T[np.searchsorted(recall_T, np.maximum(PLACES, recall_T[recall_T > 0][0]) - _ROUNDING)]
            )
    return _bounds(drawn, bootstrap)


def _bounds(drawn: list[Floats], bootstrap: Bootstrap) -> tuple[Floats | None, Floats | None]:
    if not drawn or len(bootstrap.weight_PD) < 2:
        return None, None
    low_G, high_G = np.percentile(np.stack(drawn), [2.5, 97.5], axis=0)
    return low_G, high_G


def _thinned(x_T: Floats, y_T: Floats) -> tuple[Floats, Floats]:
    """Leave out repeated points, those that lie straight between their neighbours, and of very many some more."""
    is_new = np.append(True, (np.diff(x_T) != 0) | (np.diff(y_T) != 0))
    x_T, y_T = x_T[is_new], y_T[is_new]
    if len(x_T) > 2:
        (left, right), (up, down) = ((values[1:-1] - values[:-2], values[2:] - values[1:-1]) for values in (x_T, y_T))
        is_corner = np.r_[True, np.abs(left * down - right * up) > 1e-15, True]
        x_T, y_T = x_T[is_corner], y_T[is_corner]
    if len(x_T) > MOST_POINTS:
        kept = np.unique(np.linspace(0, len(x_T) - 1, MOST_POINTS).round().astype(np.intp))
        x_T, y_T = x_T[kept], y_T[kept]
    return x_T, y_T
