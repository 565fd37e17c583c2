"""Lesion FROC by CAMELYON16's rules: the sensitivity to lesions at chosen numbers of false positives per slide.

A map becomes detections by non-maximum suppression within ``RADIUS_EDGES`` patch edges: the patch of the highest score
is a detection at its centre, its neighbours are not, and so on. The best detection in a lesion is the lesion's score;
one outside every lesion is a false positive; one in isolated cells is neither.

N patches, P pairs of neighbours, L lesions, F false positives, D draws.

Source: the evaluation code of CAMELYON16. Departures: a lesion without a detection has no score, in place of the score
0; the lowest score of all is a threshold too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from distmil.evaluation.intervals import Bootstrap, Interval
from distmil.evaluation.lesions import OUTSIDE, Lesions

FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Per slide; the FROC score is the mean sensitivity at these."""
RADIUS_EDGES = 1.5
"""Radius of the suppression in edges of a patch: the eight neighbours of a patch on a grid without overlap."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """What one score finds on one slide."""

    false_F: NDArray[np.float32]
    """Scores of the false positives."""
    lesion_L: NDArray[np.float32]
    """Best score in each lesion; NaN where nothing is detected in it."""


@dataclass(frozen=True)
class Froc:
    """Sensitivity at ``FALSE_POSITIVES`` and their mean, with 95 % intervals."""

    sensitivities: tuple[float, ...]
    score: float
    sensitivity_intervals: tuple[Interval | None, ...]
    score_interval: Interval | None


def detect(
    x_N: NDArray[np.int32],
    y_N: NDArray[np.int32],
    extent_N: NDArray[np.int32],
    scores: Sequence[NDArray[np.float32]],
    lesions: Lesions,
) -> list[Detections]:
    """Find the detections of each score on a slide, and the lesions that they hit.

    Args:
        x_N: Left edges of the patches in level-0 pixels.
        y_N: Top edges.
        extent_N: Edge lengths.
        scores: Scores of the patches, each N.
        lesions: The slide's lesions.
    """
    centre_N2 = np.stack([x_N + extent_N / 2, y_N + extent_N / 2], axis=1)
    pair_P2 = neighbours(centre_N2, radius=RADIUS_EDGES * float(extent_N.max(initial=0)))
    lesion_N = lesions.at(*centre_N2.T)
    found = []
    for score_N in scores:
        peak = peaks(score_N, pair_P2)
        best_L = np.full(lesions.num_lesions, -np.inf, np.float32)
        in_lesion = peak[lesion_N[peak] >= 0]
        np.maximum.at(best_L, lesion_N[in_lesion], score_N[in_lesion])
        best_L[np.isneginf(best_L)] = np.nan
        found.append(Detections(score_N[peak[lesion_N[peak] == OUTSIDE]], best_L))
    return found


def neighbours(centre_N2: Floats, *, radius: float) -> NDArray[np.intp]:
    """List the pairs of patches whose centres are at most a radius apart, P x 2."""
    if len(centre_N2) < 2:
        return np.empty((0, 2), np.intp)
    return np.asarray(cKDTree(centre_N2).query_pairs(radius, output_type="ndarray"))


def peaks(score_N: NDArray[np.float32], pair_P2: NDArray[np.intp]) -> NDArray[np.intp]:
    """Suppress what is not the maximum of its neighbourhood.

    In every round those that beat all neighbours are kept and their neighbours leave, which keeps the patches that one
    keeps by going through them by falling score. Of equal scores the first patch wins.

    Args:
        score_N: Scores of the patches.
        pair_P2: Pairs of neighbours, as ``neighbours`` lists them.

    Returns:
        Indices of the patches that are kept, rising.
    """
    rank_N = np.empty(len(score_N), np.intp)
    rank_N[np.argsort(-score_N, kind="stable")] = np.arange(len(score_N))
    first_is_better = rank_N[pair_P2[:, 0]] < rank_N[pair_P2[:, 1]]
    better, worse = np.where(first_is_better, pair_P2.T, pair_P2.T[::-1])
    is_open = np.ones(len(score_N), np.bool_)
    while len(better):
        is_beaten = np.zeros(len(score_N), np.bool_)
        is_beaten[worse] = True
        is_open[worse[~is_beaten[better]]] = False  # whoever is beaten by one that nobody beats
        is_left = is_open[better] & is_open[worse]
        better, worse = better[is_left], worse[is_left]
    return np.flatnonzero(is_open)


def froc_of(slides: Sequence[Detections], bootstrap: Bootstrap) -> Froc | None:
    """Compute the FROC of slides and bound it; None where they have no lesion.

    Args:
        slides: The detections of each slide.
        bootstrap: Draws of the patients of these slides.
    """
    lesion_slide, lesion_L = _gathered([slide.lesion_L for slide in slides])
    false_slide, false_F = _gathered([slide.false_F for slide in slides])
    if not len(lesion_L):
        return None
    is_hit = np.isfinite(lesion_L)
    threshold_K = np.unique(lesion_L[is_hit])[::-1]
    num_bins = 2 * len(threshold_K) + 1
    above = np.searchsorted(-threshold_K, -false_F, side="left")  # thresholds that are higher than the score
    is_equal = np.append(threshold_K, np.nan)[above] == false_F
    hit = np.searchsorted(-threshold_K, -lesion_L[is_hit])
    one = np.ones((1, 1))
    draws = bootstrap.weight_PD
    points = []
    for patient_S, weight_PD in ((np.zeros(len(slides), np.intp), one), (bootstrap.patient_S, draws)):
        drawn = Bootstrap(patient_S, weight_PD)
        num_slides_D, num_lesions_D = (
            drawn.counts(index, np.zeros(len(index), np.intp), 1)[0] for index in (np.arange(len(slides)), lesion_slide)
        )
        false_KD = drawn.counts(false_slide, 2 * above + is_equal, num_bins).cumsum(axis=0)
        hit_KD = drawn.counts(lesion_slide[is_hit], hit, len(threshold_K)).cumsum(axis=0)
        points.append(_at_chosen(false_KD, hit_KD, num_slides_D, num_lesions_D))
    (value_X,), value_DX = points
    return Froc(
        sensitivities=tuple(map(float, value_X)),
        score=float(value_X.mean()),
        sensitivity_intervals=tuple(map(bootstrap.bounds, value_DX.T)),
        score_interval=bootstrap.bounds(value_DX.mean(axis=1)),
    )


def _at_chosen(false_KD: Floats, hit_KD: Floats, num_slides_D: Floats, num_lesions_D: Floats) -> Floats:
    """Read the curve of each draw at ``FALSE_POSITIVES``, D x 6; NaN where a draw has no lesion.

    A curve runs along every threshold that is a lesion's score: up to it and, at it, up by the lesions found there.
    """
    found = np.full((len(num_slides_D), len(FALSE_POSITIVES)), np.nan)
    for i, (num_slides, num_lesions) in enumerate(zip(num_slides_D, num_lesions_D, strict=True)):
        if num_lesions:
            sensitivity = np.concatenate([[0], np.repeat(hit_KD[:, i] / num_lesions, 2)])
            false_positives = false_KD[:, i] / num_slides
            x, y = np.append(0, false_positives), np.append(0, sensitivity)
            found[i] = np.interp(FALSE_POSITIVES, x, y)
    return found


def _gathered(parts: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Join values of slides, each with the index of its slide."""
    index = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return index, np.concatenate([np.empty(0, np.float32), *parts])
