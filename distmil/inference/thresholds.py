"""Decision thresholds chosen on validation slides. Plain numpy.

A score counts as positive where it reaches the threshold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

DEFAULT_THRESHOLD = 0.5
YOUDEN, SENSITIVITY = "youden", "sensitivity"
ROUNDING = 1e-9
SMALLEST = 1e-15


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


def threshold_for(is_positive: ArrayLike, score: ArrayLike, *, aim: str = YOUDEN) -> float | None:
    """Choose the threshold that serves an aim, halfway between two neighbouring scores, or between a score and 0 or 1.

    Args:
        is_positive: Whether each case is positive.
        score: Their scores, within 0 and 1.
        aim: ``youden``; ``sensitivity=<share>``, the highest threshold of at least that sensitivity; or
            ``specificity=<share>``, the lowest one of at least that specificity.

    Returns:
        The threshold, None where there is only one class, a score is not finite, or no threshold serves the aim.
    """
    positive, value = np.asarray(is_positive, bool), np.asarray(score, np.float64)
    if not np.isfinite(value).all():
        return None
    if aim == YOUDEN:
        return youden_threshold(positive, value)
    if positive.all() or not positive.any():
        return None
    kind, _, share = aim.partition("=")
    chosen = np.sort(value[positive if kind == SENSITIVITY else ~positive])
    needed = max(1, int(np.ceil(float(share) * len(chosen) - ROUNDING)))
    if kind == SENSITIVITY:
        high = chosen[-needed]
        low = value[value < high].max(initial=0.0)
    else:
        low = chosen[needed - 1]
        high = value[value > low].min(initial=1.0)
    if low >= high:  # there is nothing below 0, where every case is called positive, and nothing above 1
        return 0.0 if kind == SENSITIVITY else None
    middle = low + (high - low) / 2
    return float(middle if middle > low else high)


def aim_in_words(aim: str) -> str:
    """Word an aim, such as "sensitivity of at least 0.95"."""
    kind, _, share = aim.partition("=")
    return "Youden's J" if aim == YOUDEN else f"{kind} of at least {float(share):g}, of patches by Youden's J"


def logit(probability: ArrayLike) -> NDArray[np.float64]:
    """Compute log-odds; those of 0 and 1 are limited to what double precision tells apart from them."""
    value = np.clip(np.asarray(probability, np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(value) - np.log1p(-value)


def calibrated(probability: float, temperature: float) -> float:
    """Divide a probability's log-odds by a temperature; 0, 0.5 and 1 stay, and the order of slides does.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    if probability in (0.0, 1.0):
        return probability
    return float(1 / (1 + np.exp(-logit(probability) / temperature)))


def threshold_of(row: Mapping[str, float | None], name: str) -> float:
    """Look up the threshold in an epoch's row of metrics, 0.5 where it holds none.

    Args:
        row: Metrics of validation, each under ``val_`` and its name.
        name: A read-out, or ``patch``.
    """
    value = row.get(f"val_threshold_{name}")
    return DEFAULT_THRESHOLD if value is None else value


def temperatures_of(row: Mapping[str, float | None], names: Sequence[str]) -> dict[str, float]:
    """Look up the temperatures of read-outs in an epoch's row of metrics, those that validation gave.

    Args:
        row: As for ``threshold_of``.
        names: The read-outs.
    """
    found = {name: row.get(f"val_temperature_{name}") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def describe_thresholds(
    row: Mapping[str, float | None],
    *,
    num_slides: int,
    noun: str = "slide",
    aim: str = YOUDEN,
    where: str = "validation",
) -> str:
    """Describe the chosen thresholds, the number of slides and where they are from, and the aim."""
    found = {name.removeprefix("val_threshold_") for name in row if name.startswith("val_threshold_")}
    names = sorted(found, key=lambda name: (name == "patch", name))
    chosen = [name for name in names if row[f"val_threshold_{name}"] is not None]
    if not chosen:
        return f"thresholds: 0.5 for {noun}s and patches; {where} has nothing to choose them by"
    text = ", ".join(f"{name} {threshold_of(row, name):.3g}" for name in chosen)
    rest = [name for name in names if name not in chosen]
    return f"thresholds chosen on {num_slides} {where} {noun}s ({aim_in_words(aim)}): {text}" + (
        f"; {', '.join(rest)}: 0.5 (one class only there, or no threshold better than chance)" if rest else ""
    )
