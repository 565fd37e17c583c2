"""Metrics of scores: slides by each read-out, patches by each score where their labels are known.

N patches, C classes. A metric that is not defined (one class only, nothing known) is None, never a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distmil.inference.scoring import READ_OUTS, BagScores
from distmil.inference.thresholds import DEFAULT_THRESHOLD, youden_threshold

PATCH_SCORES = ("attention", "probability", "fused")


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
    """Compute slide_sensitivity and slide_specificity where a read-out counts as positive from a threshold on.

    Args:
        rows: The slides; positive is every class but 0.
        slide_score: The read-out.
        threshold: Its threshold.
    """
    is_called = np.array([row.read_outs[READ_OUTS.index(slide_score)] >= threshold for row in rows], bool)
    is_positive = np.array([row.label > 0 for row in rows], bool)
    return {
        "slide_sensitivity": float(is_called[is_positive].mean()) if is_positive.any() else None,
        "slide_specificity": float((~is_called)[~is_positive].mean()) if (~is_positive).any() else None,
    }


def choose_thresholds(rows: Sequence[LabelledScores]) -> dict[str, float | None]:
    """Choose the thresholds of slides and patches by Youden's J.

    Returns:
        threshold_<read-out> of every read-out, and threshold_patch, of a patch's probability. Positive is every class
        but 0. A threshold is None where there is only one class, or none is better than chance. Nothing without rows.
    """
    if not rows:
        return {}
    is_positive = np.array([row.label > 0 for row in rows])
    found = {
        f"threshold_{name}": youden_threshold(is_positive, [row.read_outs[i] for row in rows])
        for i, name in enumerate(READ_OUTS)
    }
    at = PATCH_SCORES.index("probability")
    is_target = np.concatenate([row.is_target_N for row in rows])
    return found | {"threshold_patch": youden_threshold(is_target, np.concatenate([row.scores_N[at] for row in rows]))}


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
