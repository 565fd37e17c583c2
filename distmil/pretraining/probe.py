"""How good the embeddings of a fixed sample are: a linear probe, their spread, and their effective rank.

N patches of the sample, E embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distmil.bags.source import Indices
from distmil.evaluation.metrics import auc

LEAST_SPREAD = 0.01
"""Below this spread all embeddings are one."""
LEAST_RANK = 2.0
"""Below this effective rank all embeddings lie on one line."""
RIDGE = 1.0
"""Of the linear probe, on standardised embeddings."""
_LEAST_OF_CLASS = 5
_TARGET_SHARE = 0.5

Kind = Literal["patch labels", "slide labels", "none"]


@dataclass(frozen=True)
class Sample:
    """The patches that every epoch is measured on, and what is known of them."""

    patch_N: Indices
    """Their numbers."""
    slide_N: Indices
    """Number of each one's slide."""
    is_target_N: NDArray[np.bool_]
    """By the patch's label or, for slide labels, by its slide's; False where it is not known."""
    is_known_N: NDArray[np.bool_]
    half_N: Indices
    """0 or 1: a probe learns on the slides of one half and is measured on those of the other; -1: neither."""
    kind: Kind
    """By which labels the probe is measured."""


@dataclass(frozen=True)
class SlidePatches:
    """What is known of a slide's patches."""

    label: int | None
    label_N: NDArray[np.int8]
    """Class of each patch, -1 where it is not known."""


def draw_sample(slides: Sequence[SlidePatches], *, count: int, seed: int) -> Sample:
    """Draw a sample of equal numbers from every slide, half of them target where a slide has so much of it.

    The probe takes patch labels where both halves of the slides hold target and normal patches, else the labels of the
    slides, else there is none.

    Args:
        slides: Slides in the order in which their patches are numbered.
        count: About how many patches.
        seed: Of the draws.
    """
    generator = np.random.default_rng([seed, 2**31])
    each = max(1, round(count / len(slides)))
    chosen, first = [], 0
    for slide in slides:
        target = generator.permutation(np.flatnonzero(slide.label_N > 0))[: round(each * _TARGET_SHARE)]
        others = generator.permutation(np.flatnonzero(slide.label_N <= 0))
        chosen.append(np.sort(np.concatenate([target, others[: each - len(target)]])) + first)
        first += len(slide.label_N)
    sizes = [len(own) for own in chosen]
    patch_N, slide_N = np.concatenate(chosen), np.repeat(np.arange(len(slides)), sizes)
    label_N = np.concatenate([slide.label_N for slide in slides])[patch_N]
    slide_label_N = np.array([-1 if slide.label is None else slide.label for slide in slides])[slide_N]
    by_kind: dict[Kind, NDArray[Any]] = {"patch labels": label_N, "slide labels": slide_label_N}
    for kind, found_N in by_kind.items():
        half_N = _halves(slide_N, found_N)
        if _is_enough(found_N, half_N):
            return Sample(patch_N, slide_N, found_N > 0, found_N >= 0, half_N, kind)
    nothing_N = np.zeros(len(patch_N), bool)
    return Sample(patch_N, slide_N, nothing_N, nothing_N, np.full(len(patch_N), -1), "none")


def _halves(slide_N: Indices, label_N: NDArray[Any]) -> Indices:
    """Deal slides out in turn, those with target patches first, so that both halves get some of them."""
    slides = np.unique(slide_N)
    has_target = np.array([(label_N[slide_N == slide] > 0).any() for slide in slides])
    order = np.concatenate([slides[has_target], slides[~has_target]])
    half_of = dict(zip(order.tolist(), (np.arange(len(order)) % 2).tolist(), strict=True))
    return np.array([half_of[slide] for slide in slide_N.tolist()], np.int64)


def _is_enough(label_N: NDArray[Any], half_N: Indices) -> bool:
    counts = [((label_N[half_N == half] > 0).sum(), (label_N[half_N == half] == 0).sum()) for half in (0, 1)]
    return bool(min(min(pair) for pair in counts) >= _LEAST_OF_CLASS)


def measure(embedding_NE: NDArray[np.floating[Any]], sample: Sample) -> dict[str, float | None]:
    """Measure the embeddings of a sample.

    Returns:
        ``probe_auc`` of a linear probe, None where no labels allow one; ``spread`` and ``rank`` of the embeddings.
    """
    wide_NE = np.asarray(embedding_NE, np.float64)
    return {"probe_auc": probe_auc(wide_NE, sample), "spread": spread(wide_NE), "rank": rank(wide_NE)}


def spread(embedding_NE: NDArray[np.float64]) -> float:
    """Compute the mean deviation of a dimension of embeddings of length 1, as a share of the largest possible.

    Source: Chen & He 2021 (SimSiam), figure 2; it is 0 where all embeddings are equal, and 1 where they are spread
    evenly around 0.
    """
    length_N1 = np.linalg.norm(embedding_NE, axis=1, keepdims=True)
    unit_NE = embedding_NE / np.maximum(length_N1, 1e-12)
    return float(unit_NE.std(axis=0).mean() * np.sqrt(embedding_NE.shape[1]))


def rank(embedding_NE: NDArray[np.float64]) -> float:
    """Compute the effective rank: how many directions the embeddings fill evenly; 0 where they are all equal.

    Source: Roy & Vetterli 2007, of centred embeddings.
    """
    values = np.linalg.svd(embedding_NE - embedding_NE.mean(axis=0), compute_uv=False)
    if values.sum() <= 1e-9 * max(1.0, float(np.abs(embedding_NE).max())):
        return 0.0
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def probe_auc(embedding_NE: NDArray[np.float64], sample: Sample) -> float | None:
    """Compute the area under the curve of a linear probe on slides that it did not learn from, the mean of two halves.

    On slide labels every patch learns its slide's label, and a slide is scored by the mean of its patches.
    """
    if sample.kind == "none":
        return None
    found = []
    for half in (0, 1):
        learns_N, judged_N = (sample.is_known_N & (sample.half_N == side) for side in (1 - half, half))
        score_N = _ridge(embedding_NE[learns_N], sample.is_target_N[learns_N], embedding_NE[judged_N])
        is_target_N = sample.is_target_N[judged_N]
        if sample.kind == "slide labels":
            slide_N = sample.slide_N[judged_N]
            slides = np.unique(slide_N)
            score_N = np.array([score_N[slide_N == slide].mean() for slide in slides])
            is_target_N = np.array([is_target_N[slide_N == slide].any() for slide in slides])
        found.append(auc(is_target_N, score_N))
    return float(np.mean([value for value in found if value is not None]))


def _ridge(
    learned_NE: NDArray[np.float64], is_target_N: NDArray[np.bool_], judged_NE: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit a ridge regression on both classes with equal weight, and score other patches."""
    mean_E, deviation_E = learned_NE.mean(axis=0), learned_NE.std(axis=0)
    scale_E = np.where(deviation_E > 1e-9, deviation_E, 1.0)
    known_NE, asked_NE = (learned_NE - mean_E) / scale_E, (judged_NE - mean_E) / scale_E
    weight_N = np.where(is_target_N, 0.5 / is_target_N.sum(), 0.5 / (~is_target_N).sum())
    wanted_N = np.where(is_target_N, 1.0, -1.0)
    weighted_EN = known_NE.T * weight_N
    square_EE = weighted_EN @ known_NE + RIDGE * np.eye(known_NE.shape[1])
    scored_N: NDArray[np.float64] = asked_NE @ np.linalg.solve(square_EE, weighted_EN @ wanted_N)
    return scored_N


def collapse_in_words(row: dict[str, float | None]) -> str | None:
    """Say how the embeddings of an epoch collapsed; None where they did not."""
    found_spread, found_rank = row["spread"] or 0.0, row["rank"] or 0.0
    if found_spread < LEAST_SPREAD:
        return f"the encoder gives nearly one embedding for all patches (spread {found_spread:.2g} of 1)"
    if found_rank < LEAST_RANK:
        return f"the embeddings of all patches lie on one line (effective rank {found_rank:.2g})"
    return None
