"""Metrics of scores: slides by each read-out, patches by each score where their labels are known.

N patches, C classes. A metric that is not defined (one class only, nothing known) is None, never a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distmil.inference.scoring import READ_OUTS, BagScores
from distmil.inference.thresholds import DEFAULT_THRESHOLD, ROUNDING, YOUDEN, threshold_for

PATCH_SCORES = ("attention", "probability", "fused")
SPECIFICITIES = (0.9, 0.95)
"""At which the sensitivity to slides is stated."""


@dataclass(frozen=True)
class LabelledScores:
    """A slide's label and scores, and those of its patches whose label is known."""

    label: int
    bag_C: NDArray[np.float64]
    read_outs: tuple[float, ...]
    is_target_N: NDArray[np.bool_]
    scores_N: tuple[NDArray[np.float32], ...]


def label_scores(scores: BagScores, *, label: int, label_N: NDArray[np.int8]) -> LabelledScores:
    """Put a slide's scores beside its labels, as metrics need them.

    Args:
        scores: The network's scores.
        label: The slide's class.
        label_N: The patches' classes, -1 where unknown.
    """
    known = label_N >= 0
    return LabelledScores(
        label=label,
        bag_C=scores.bag_C,
        read_outs=tuple(getattr(scores, name) for name in READ_OUTS),
        is_target_N=label_N[known] > 0,
        scores_N=tuple(getattr(scores, f"{name}_N")[known] for name in PATCH_SCORES),
    )


def summarise(
    rows: Sequence[LabelledScores], *, slide_score: str = "bag", threshold: float = DEFAULT_THRESHOLD
) -> dict[str, float | None]:
    """Compute the metrics of slides and their patches.

    Args:
        rows: The slides.
        slide_score: The read-out that counts.
        threshold: Of that read-out, for slide_accuracy: the bundle's; 0.5 while there is no bundle yet, as after each
            epoch of training.

    Returns:
        slide_auc, slide_ap, slide_accuracy (of the read-out that counts), slide_auc_<read-out>, slide_loss (cross
        entropy of ``bag``), and patch_auc_<score>, patch_ap_<score>. Positive is every class but 0; with more
        classes there is slide_class_accuracy too.
    """
    if not rows:
        return {}
    label = np.array([row.label for row in rows])
    is_positive = label > 0
    read_out = {name: np.array([row.read_outs[i] for row in rows]) for i, name in enumerate(READ_OUTS)}
    counts = read_out[slide_score]
    bag_NC = np.stack([row.bag_C for row in rows])
    found: dict[str, float | None] = {
        "slide_auc": auc(is_positive, counts),
        "slide_ap": average_precision(is_positive, counts),
        "slide_accuracy": float(np.mean((counts >= threshold) == is_positive)),
        "slide_loss": float(-np.log(np.clip(bag_NC[np.arange(len(label)), label], 1e-12, 1)).mean()),
    }
    found |= {f"slide_auc_{name}": auc(is_positive, values) for name, values in read_out.items()}
    if bag_NC.shape[1] > 2:
        found["slide_class_accuracy"] = float(np.mean(bag_NC.argmax(axis=1) == label))
    is_target = np.concatenate([row.is_target_N for row in rows])
    for i, name in enumerate(PATCH_SCORES):
        values = np.concatenate([row.scores_N[i] for row in rows])
        found[f"patch_auc_{name}"] = auc(is_target, values)
        found[f"patch_ap_{name}"] = average_precision(is_target, values)
    return found


def at_threshold(rows: Sequence[LabelledScores], *, slide_score: str, threshold: float) -> dict[str, float | None]:
    """Compute the metrics of slides that thresholds decide.

    Args:
        rows: The slides; positive is every class but 0.
        slide_score: The read-out that counts as positive from its threshold on.
        threshold: The bundle's threshold of that read-out.

    Returns:
        slide_sensitivity, slide_specificity and their mean slide_balanced_accuracy, at the threshold; the sensitivity
        at each of ``SPECIFICITIES``, at the threshold that these slides suggest.
    """
    score = np.array([row.read_outs[READ_OUTS.index(slide_score)] for row in rows], float)
    is_positive = np.array([row.label > 0 for row in rows], bool)
    is_called = score >= threshold
    sensitivity = float(is_called[is_positive].mean()) if is_positive.any() else None
    specificity = float((~is_called)[~is_positive].mean()) if (~is_positive).any() else None
    balanced = None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
    return {
        "slide_sensitivity": sensitivity,
        "slide_specificity": specificity,
        "slide_balanced_accuracy": balanced,
        **{sensitivity_name(share): sensitivity_at(is_positive, score, specificity=share) for share in SPECIFICITIES},
    }


def sensitivity_name(specificity: float) -> str:
    """Name the sensitivity at a specificity, such as slide_sensitivity_at_specificity_90."""
    return f"slide_sensitivity_at_specificity_{100 * specificity:.0f}"


def sensitivity_at(is_positive: NDArray[np.bool_], score: NDArray[np.float64], *, specificity: float) -> float | None:
    """Compute the highest sensitivity of a threshold whose specificity is at least the one wanted.

    Args:
        is_positive: Whether each case is positive.
        score: Their scores.
        specificity: The share of negative cases below the threshold.

    Returns:
        The share of positive cases at or above it; None where there is one class only.
    """
    if not 0 < is_positive.sum() < len(is_positive):
        return None
    negative = np.sort(score[~is_positive])
    needed = int(np.ceil(specificity * len(negative) - ROUNDING))  # so many negative ones lie below the threshold
    return float((score[is_positive] > (negative[needed - 1] if needed else -np.inf)).mean())


def choose_thresholds(rows: Sequence[LabelledScores], *, aim: str = YOUDEN) -> dict[str, float | None]:
    """Choose the thresholds of slides by an aim, and that of patches by Youden's J.

    Args:
        rows: The slides.
        aim: ``training.threshold_aim``.

    Returns:
        threshold_<read-out> of every read-out, and threshold_patch, of a patch's probability. Positive is every class
        but 0. A threshold is None where there is only one class, or none serves. Nothing without rows.
    """
    if not rows:
        return {}
    is_positive = np.array([row.label > 0 for row in rows])
    found = {
        f"threshold_{name}": threshold_for(is_positive, [row.read_outs[i] for row in rows], aim=aim)
        for i, name in enumerate(READ_OUTS)
    }
    at = PATCH_SCORES.index("probability")
    is_target = np.concatenate([row.is_target_N for row in rows])
    return found | {"threshold_patch": threshold_for(is_target, np.concatenate([row.scores_N[at] for row in rows]))}


def auc(is_positive: ArrayLike, score: ArrayLike) -> float | None:
    """Compute the area under the ROC curve, None if there is only one class or a case has no score."""
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415  # takes a second, and most processes score nothing

    positive = np.asarray(is_positive)
    is_defined = 0 < positive.sum() < len(positive) and not np.isnan(score).any()
    return float(roc_auc_score(positive, score)) if is_defined else None


def average_precision(is_positive: ArrayLike, score: ArrayLike) -> float | None:
    """Compute average precision, None if there is no positive."""
    from sklearn.metrics import average_precision_score  # noqa: PLC0415  # see auc

    positive = np.asarray(is_positive)
    return float(average_precision_score(positive, score)) if positive.any() else None
