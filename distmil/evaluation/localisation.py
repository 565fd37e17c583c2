"""How well the patch scores show where targets are: lesion FROC, the pointing game, and overlap at the patch threshold.

Only slides whose targets are all known take part in the first two: normal ones, and completely annotated ones.

N patches of a slide, S slides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.evaluation.froc import FALSE_POSITIVES, Detections, Froc, detect, froc_of
from distmil.evaluation.intervals import DRAWS, Bootstrap, Interval
from distmil.evaluation.lesions import Lesions
from distmil.evaluation.metrics import PATCH_SCORES, LabelledScores


@dataclass(frozen=True)
class Localised:
    """What each of ``PATCH_SCORES`` finds on one slide."""

    detections: tuple[Detections, ...]
    is_pointed: tuple[bool, ...]
    """Whether the patch of the highest score is a target; empty where the slide shows no target, or the label of such
    a patch is unknown."""
    num_isolated: int = 0


@dataclass(frozen=True)
class Localisation:
    """Metrics of where targets are, how sure they are, and of how many cases they are."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """lesions, isolated_cells, lesion_slides (with or without lesions), pointing_slides."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Sensitivity at each number of false positives by score, for a table."""


def localise(
    grid: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
    scores: Sequence[NDArray[np.float32]],
    label_N: NDArray[np.int8],
    lesions: Lesions,
) -> Localised:
    """Compare the scores of a slide's patches with its lesions and labels.

    Args:
        grid: Left edges, top edges and edge lengths of the patches in level-0 pixels, each N.
        scores: Of each of ``PATCH_SCORES``, N.
        label_N: Classes of the patches, -1 where unknown.
        lesions: All lesions of the slide.
    """
    top = [label_N[score_N.argmax()] for score_N in scores] if len(label_N) else []
    is_judged = (label_N > 0).any() and min(top) >= 0
    return Localised(
        detections=tuple(detect(*grid, scores, lesions)),
        is_pointed=tuple(bool(label > 0) for label in top) if is_judged else (),
        num_isolated=lesions.num_isolated,
    )


def localisation_of(slides: Sequence[Localised], patients: Sequence[str], *, draws: int = DRAWS) -> Localisation:
    """Compute lesion_froc_<score> and pointing_<score>, with intervals by patient.

    Args:
        slides: Those whose targets are all known.
        patients: Their patients.
        draws: Number of draws.

    Returns:
        Nothing where no slide shows a target.
    """
    pointed_S = np.array([i for i, slide in enumerate(slides) if slide.is_pointed], np.intp)
    num_lesions = sum(len(slide.detections[0].lesion_L) for slide in slides)
    if not len(pointed_S) and not num_lesions:
        return Localisation()
    bootstrap = Bootstrap.of(patients, draws=draws)
    found = Localisation(
        counts={
            "lesions": num_lesions,
            "isolated_cells": sum(slide.num_isolated for slide in slides),
            "lesion_slides": len(slides),
            "pointing_slides": len(pointed_S),
        }
    )
    for i, name in enumerate(PATCH_SCORES):
        froc = froc_of([slide.detections[i] for slide in slides], bootstrap)
        is_pointed = [slides[slide].is_pointed[i] for slide in pointed_S]
        found.metrics[f"lesion_froc_{name}"] = froc.score if froc else None
        found.intervals[f"lesion_froc_{name}"] = froc.score_interval if froc else None
        found.metrics[f"pointing_{name}"] = float(np.mean(is_pointed)) if is_pointed else None
        found.intervals[f"pointing_{name}"] = bootstrap.mean(pointed_S, is_pointed)
        found.rows.extend(_froc_rows(name, froc) if froc else [])
    return found


def _froc_rows(name: str, froc: Froc) -> list[dict[str, Any]]:
    """List the points of a curve that CAMELYON16 averages, and their mean."""
    rows = []
    points = zip(FALSE_POSITIVES, froc.sensitivities, froc.sensitivity_intervals, strict=True)
    for at, value, interval in [*points, ("mean", froc.score, froc.score_interval)]:
        low, high = interval or (None, None)
        rows.append({"score": name, "false_positives_per_slide": at, "sensitivity": value, "low": low, "high": high})
    return rows


def overlap_of(
    rows: Sequence[LabelledScores], patients: Sequence[str], *, threshold: float, draws: int = DRAWS
) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
    """Compute patch_dice and patch_iou of the patches that are called abnormal with those that are, over all slides.

    Args:
        rows: The slides, with their patches of known labels.
        patients: Their patients.
        threshold: The bundle's patch threshold, of the probability. The other scores have none.
        draws: Number of draws.

    Returns:
        The metrics, and their intervals by patient; None where no patch is a target or called so.
    """
    at = PATCH_SCORES.index("probability")
    called = [row.scores_N[at].astype(np.float64) >= threshold for row in rows]
    both_S = np.array([(is_called & row.is_target_N).sum() for is_called, row in zip(called, rows, strict=True)])
    sizes_S = np.array([is_called.sum() + row.is_target_N.sum() for is_called, row in zip(called, rows, strict=True)])
    bootstrap = Bootstrap.of(patients, draws=draws)
    shares = {"patch_dice": (2 * both_S, sizes_S), "patch_iou": (both_S, sizes_S - both_S)}
    metrics = {name: float(top.sum() / below.sum()) if below.sum() else None for name, (top, below) in shares.items()}
    return metrics, {name: bootstrap.ratio(top, below) for name, (top, below) in shares.items()}
