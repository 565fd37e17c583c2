"""Metrics of parts of the slides: each site, and with more than two classes each class against the others.

S slides.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distmil.evaluation.intervals import DRAWS, Bootstrap
from distmil.evaluation.metrics import LabelledScores, auc, average_precision
from distmil.inference.scoring import READ_OUTS


def group_rows(
    rows: Sequence[LabelledScores],
    patients: Sequence[str],
    sites: Sequence[str | None],
    *,
    classes: Sequence[str],
    slide_score: str,
    threshold: float,
    draws: int = DRAWS,
) -> list[dict[str, Any]]:
    """List the metrics of each site and class with their intervals by patient.

    A slide of a site is positive where it is abnormal, one of a class where it has that class; the classes' areas are
    of their probabilities, which are those of the read-out ``bag``.

    Args:
        rows: The slides.
        patients: Their patients.
        sites: Their sites, None where unknown.
        classes: Class names.
        slide_score: The read-out that counts.
        threshold: Of that read-out.
        draws: Number of draws of the bootstrap.

    Returns:
        One row a metric: by (site or class), group, slides, positive_slides, patients, metric, value, low, high.
    """
    label_S = np.array([row.label for row in rows])
    called_S = called_classes(rows, slide_score=slide_score, threshold=threshold)
    score_S = np.array([row.read_outs[READ_OUTS.index(slide_score)] for row in rows])
    patient_S, site_S = np.array(patients, object), np.array(sites, object)
    found = []
    for name in sorted({site for site in sites if site is not None}):
        at = np.flatnonzero(site_S == name)
        found += _rows(
            "site", name, label_S[at] > 0, score_S=score_S[at], is_called_S=called_S[at] > 0, patient_S=patient_S[at],
            draws=draws,
        )  # fmt: skip
    for index, name in enumerate(classes if len(classes) > 2 else ()):
        probability_S = np.array([row.bag_C[index] for row in rows])
        found += _rows(
            "class", name, label_S == index, score_S=probability_S, is_called_S=called_S == index, patient_S=patient_S,
            draws=draws,
        )  # fmt: skip
    return found


def called_classes(rows: Sequence[LabelledScores], *, slide_score: str, threshold: float) -> NDArray[np.intp]:
    """Find the class that each slide is predicted as, S: the likeliest abnormal one from the threshold on, else 0."""
    is_abnormal = [row.read_outs[READ_OUTS.index(slide_score)] >= threshold for row in rows]
    likeliest = [1 + int(row.bag_C[1:].argmax()) for row in rows]
    return np.where(is_abnormal, likeliest, 0)


def _rows(
    by: str,
    group: str,
    is_positive_S: NDArray[np.bool_],
    *,
    score_S: NDArray[np.float64],
    is_called_S: NDArray[np.bool_],
    patient_S: NDArray[np.object_],
    draws: int,
) -> list[dict[str, Any]]:
    """List the metrics of one part."""
    bootstrap, slide_S = Bootstrap.of(list(patient_S), draws=draws), np.arange(len(score_S))
    is_right_S = is_called_S == is_positive_S
    area, average = bootstrap.ranking(slide_S, is_positive_S, score_S)
    sensitivity, specificity = (_share(is_right_S[chosen]) for chosen in (is_positive_S, ~is_positive_S))
    both = None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
    metrics = {
        "auc": (auc(is_positive_S, score_S), area),
        "ap": (average_precision(is_positive_S, score_S), average),
        "accuracy": (_share(is_right_S), bootstrap.mean(slide_S, is_right_S)),
        "sensitivity": (sensitivity, bootstrap.mean(slide_S[is_positive_S], is_right_S[is_positive_S])),
        "specificity": (specificity, bootstrap.mean(slide_S[~is_positive_S], is_right_S[~is_positive_S])),
        "balanced_accuracy": (both, bootstrap.balanced(is_positive_S, is_right_S)),
    }
    about = {
        "by": by, "group": group, "slides": len(slide_S), "positive_slides": int(is_positive_S.sum()),
        "patients": len(set(patient_S)),
    }  # fmt: skip
    rows = []
    for name, (value, bounds) in metrics.items():
        low, high = bounds or (None, None)
        rows.append({**about, "metric": name, "value": value, "low": low, "high": high})
    return rows


def _share(is_right: ArrayLike) -> float | None:
    """Compute the share of right ones, None of nothing."""
    right = np.asarray(is_right, float)
    return float(right.mean()) if len(right) else None
