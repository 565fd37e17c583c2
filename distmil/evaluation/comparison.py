"""Evaluated runs on equal slides against each other: paired differences, and the slides that changed their prediction.

S slides, P positive ones, N negative ones, D draws.

Source of the test: DeLong, DeLong and Clarke-Pearson 1988; ranks as Sun and Xu 2014. It takes slides as independent,
unlike the intervals, which draw patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from distmil.errors import BadInput
from distmil.evaluation.intervals import DRAWS, Bootstrap
from distmil.evaluation.metrics import auc, average_precision
from distmil.evaluation.slide_results import RIGHT, SlideResult

_SHOWN = 5
Floats = NDArray[np.float64]
Results = Mapping[str, SlideResult]
"""Judged slides of a run by slide id."""


@dataclass(frozen=True)
class Comparison:
    """A run against the first one."""

    first: str
    other: str
    rows: list[dict[str, Any]]
    """One a metric: both values, their difference (other - first) and its 95 % interval; p of the AUC by DeLong."""
    changed: list[dict[str, Any]]
    """Slides whose prediction differs: those that became wrong on top."""


def judged_results(results: Sequence[SlideResult]) -> dict[str, SlideResult]:
    """Select the slides with a prediction and a label of their own, by slide id."""
    return {result.slide_id: result for result in results if result.verdict and result.probability is not None}


def compare(runs: Mapping[str, Sequence[SlideResult]], *, normal: str, draws: int = DRAWS) -> list[Comparison]:
    """Compare every run with the first one.

    Args:
        runs: Slides of each run by the run's name.
        normal: Name of class 0.
        draws: Draws of the bootstrap over patients.

    Raises:
        BadInput: If the runs are not of the same slides, labels and patients.
    """
    judged = {name: judged_results(results) for name, results in runs.items()}
    (first, *others) = judged
    for other in others:
        _check_alike(first, judged[first], other, judged[other])
    return [_compared(first, judged[first], other, judged[other], normal=normal, draws=draws) for other in others]


def _check_alike(first: str, ours: Results, other: str, theirs: Results) -> None:
    """Refuse runs of different slides. Raises: BadInput."""
    reasons = []
    for here, some, there, rest in ((first, ours, other, theirs), (other, theirs, first, ours)):
        if missing := sorted(some.keys() - rest.keys()):
            reasons.append(f"{_listed(missing)} has a label and a prediction in {here}, and not in {there}")
    both = sorted(ours.keys() & theirs.keys())
    for name, word in (("label", "label"), ("patient_id", "patient")):
        if differing := [
            slide_id for slide_id in both if getattr(ours[slide_id], name) != getattr(theirs[slide_id], name)
        ]:
            reasons.append(f"the {word} of {_listed(differing)} differs")
    if not ours and not theirs:
        reasons = ["neither has a slide with a label and a prediction"]
    if reasons:
        raise BadInput(
            f"{first} and {other} cannot be compared: {'; '.join(reasons)}. Evaluate both on one manifest and one split"
        )


def _listed(slide_ids: Sequence[str]) -> str:
    rest = len(slide_ids) - _SHOWN
    return ", ".join(slide_ids[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _compared(first: str, ours: Results, other: str, theirs: Results, *, normal: str, draws: int) -> Comparison:
    slide_ids = list(ours)
    is_positive = np.array([ours[name].label != normal for name in slide_ids], bool)
    bootstrap = Bootstrap.of([ours[name].patient_id for name in slide_ids], draws=draws)
    pair = [[run[name] for name in slide_ids] for run in (ours, theirs)]
    (mine, mine_D), (their, their_D) = (_metrics(results, is_positive, bootstrap) for results in pair)
    scores = [np.array([result.probability for result in results], float) for results in pair]
    rows = []
    for name, value in mine.items():
        interval = bootstrap.bounds(their_D[name] - mine_D[name])
        low, high = interval or (None, None)
        rows.append({
            "metric": name, "first": value, "other": their[name],
            "difference": None if value is None or their[name] is None else their[name] - value,
            "low": low, "high": high, "p": delong(is_positive, *scores) if name == "auc" else None,
        })  # fmt: skip
    changed = [_changed(one, another) for one, another in zip(*pair, strict=True) if one.predicted != another.predicted]
    return Comparison(first, other, rows, sorted(changed, key=lambda row: row["now"] == RIGHT))


def _changed(one: SlideResult, another: SlideResult) -> dict[str, Any]:
    return {
        "slide_id": one.slide_id,
        "label": one.label,
        "predicted_first": one.predicted,
        "probability_first": one.probability,
        "predicted_other": another.predicted,
        "probability_other": another.probability,
        "now": another.verdict,
    }


def _metrics(
    results: Sequence[SlideResult], is_positive_S: NDArray[np.bool_], bootstrap: Bootstrap
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Compute the metrics of a run's slides, and each in every draw."""
    score_S = np.array([result.probability for result in results], float)
    threshold_S = np.array([result.threshold for result in results], float)
    is_right_S = (score_S >= threshold_S) == is_positive_S
    slide_S, one_S = np.arange(len(score_S)), np.ones(len(score_S))
    squared_S = (score_S - is_positive_S) ** 2
    whole = Bootstrap(np.zeros(len(score_S), np.intp), np.ones((1, 1)))
    found: list[dict[str, Floats]] = []
    for draws in (whole, bootstrap):
        area_D, average_D = draws.ranked(slide_S, is_positive_S, score_S)
        sensitivity_D, specificity_D = draws.right_shares(is_positive_S, is_right_S)
        count_D = draws.sums(one_S, draws.patient_S)
        found.append({
            "auc": area_D,
            "ap": average_D,
            "accuracy": draws.sums(is_right_S, draws.patient_S) / count_D,
            "sensitivity": sensitivity_D,
            "specificity": specificity_D,
            "balanced_accuracy": (sensitivity_D + specificity_D) / 2,
            "brier": draws.sums(squared_S, draws.patient_S) / count_D,
        })  # fmt: skip
    values, drawn = found
    exact = {"auc": auc(is_positive_S, score_S), "ap": average_precision(is_positive_S, score_S)}
    rest = {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in values.items()}
    return rest | exact, drawn


def delong(is_positive_S: NDArray[np.bool_], first_S: Floats, other_S: Floats) -> float | None:
    """Test whether two areas under the ROC curve of the same slides are equal.

    Args:
        is_positive_S: Whether each slide is abnormal.
        first_S: Scores of one run.
        other_S: Scores of the other.

    Returns:
        The two-sided p; 1 where both rank the slides alike; None where the variance is unknown, as with fewer than two
        slides of a class.
    """
    num_positive, num_negative = int(is_positive_S.sum()), int((~is_positive_S).sum())
    if min(num_positive, num_negative) < 2:
        return None
    positive_2P, negative_2N = (np.stack(parts) for parts in zip(
        _placements(is_positive_S, first_S), _placements(is_positive_S, other_S), strict=True
    ))  # fmt: skip
    covariance = np.cov(positive_2P) / num_positive + np.cov(negative_2N) / num_negative
    difference = positive_2P[1].mean() - positive_2P[0].mean()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= 1e-15:  # rounding of what is 0
        return 1.0 if abs(difference) < 1e-9 else None
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def _placements(is_positive_S: NDArray[np.bool_], score_S: Floats) -> tuple[Floats, Floats]:
    """Compute the share of negative slides below each positive one, P, and of positive slides above each negative, N.

    Ties count half.
    """
    rank_S = rankdata(score_S)
    positive, negative = score_S[is_positive_S], score_S[~is_positive_S]
    below_P = (rank_S[is_positive_S] - rankdata(positive)) / len(negative)
    above_N = 1 - (rank_S[~is_positive_S] - rankdata(negative)) / len(positive)
    return below_P, above_N
