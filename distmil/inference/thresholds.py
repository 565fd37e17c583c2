"""Decision thresholds chosen on validation slides. Plain numpy.

A score counts as positive where it reaches the threshold.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

DEFAULT_THRESHOLD = 0.5


def youden_threshold(is_positive: ArrayLike, score: ArrayLike) -> float | None:
    """Choose the threshold with the highest Youden's J (sensitivity + specificity - 1).

    The threshold lies halfway between two neighbouring scores. Of several with the same J, the nearest to 0.5 counts,
    then the lower one.

    Args:
        is_positive: Whether each case is positive.
        score: Their scores, within 0 and 1; NaN where a case has none.

    Returns:
        The threshold, None where there is only one class or a case has no score, or where no threshold is better than
        chance.

    Source: Youden 1950, Index for rating diagnostic tests.
    """
    positive = np.asarray(is_positive, bool)
    value = np.asarray(score, np.float64)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative or np.isnan(value).any():
        return None
    order = np.argsort(value, kind="stable")
    value, positive = value[order], positive[order]
    is_cut = value[1:] > value[:-1]
    missed, spared = np.cumsum(positive)[:-1][is_cut], np.cumsum(~positive)[:-1][is_cut]
    gain = spared * num_positive - missed * num_negative  # J x positives x negatives, in integers: ties are exact
    if not len(gain) or gain.max() <= 0:
        return None
    low, high = value[:-1][is_cut][gain == gain.max()], value[1:][is_cut][gain == gain.max()]
    middle = low + (high - low) / 2
    cut = np.where(middle > low, middle, high)  # between neighbours among floats there is nothing
    return float(cut[np.argmin(np.abs(cut - DEFAULT_THRESHOLD))])


def threshold_of(row: Mapping[str, float | None], name: str) -> float:
    """Look up the threshold in an epoch's row of metrics, 0.5 where it holds none.

    Args:
        row: Metrics of validation, each under ``val_`` and its name.
        name: A read-out, or ``patch``.
    """
    value = row.get(f"val_threshold_{name}")
    return DEFAULT_THRESHOLD if value is None else value


def describe_thresholds(row: Mapping[str, float | None], *, num_slides: int, noun: str = "slide") -> str:
    """Describe the chosen thresholds and the number of validation slides."""
    found = {name.removeprefix("val_threshold_") for name in row if name.startswith("val_threshold_")}
    names = sorted(found, key=lambda name: (name == "patch", name))
    chosen = [name for name in names if row[f"val_threshold_{name}"] is not None]
    if not chosen:
        return f"thresholds: 0.5 for {noun}s and patches; validation has nothing to choose them by"
    text = ", ".join(f"{name} {threshold_of(row, name):.3g}" for name in chosen)
    rest = [name for name in names if name not in chosen]
    return f"thresholds chosen on {num_slides} validation {noun}s (Youden's J): {text}" + (
        f"; {', '.join(rest)}: 0.5 (one class only there, or no threshold better than chance)" if rest else ""
    )
