"""How a slide differs from those of training: its embeddings by tissue, stain, scanner or resolution, and its size.

T patches, E embedding.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distmil.bags.source import PatchSource
from distmil.models.normaliser import Normaliser

SAMPLED_SLIDES, SAMPLED_PATCHES = 500, 512
"""Training slides, and patches of each, that the reach is measured on."""
REACH_QUANTILE = 0.99
MARGIN = 1.25
"""A slide raises doubt where it lies this many times farther than the reach."""
_LEAST_REACH = 0.05
"""Of a few equal slides; any other slide would lie beyond less."""
_STEP = 2048
USUAL_QUANTILE = 0.99
TIMES_LARGER = 3.0
"""A slide raises doubt where it has this many times the patches of nearly all training slides."""


T = TypeVar("T")


class Shift:
    """The shift of some patches, gathered piece by piece: root mean square, over the dimensions, of their mean.

    Embeddings are normalised, so that training patches as a whole have the mean 0 and the deviation 1. What a mean of
    T patches deviates by chance, their variance over T, is subtracted: a slide of few patches is not farther for it.
    """

    def __init__(self, normaliser: Normaliser) -> None:
        self._normaliser = normaliser
        self._count = 0
        self._total_E, self._squares_E = (torch.zeros_like(normaliser.mean, dtype=torch.float64) for _ in range(2))

    def add(self, embedding_TE: Tensor) -> None:
        """Take in raw embeddings, T x E."""
        for start in range(0, len(embedding_TE), _STEP):
            normal_TE = self._normaliser(embedding_TE[start : start + _STEP].float())
            self._total_E += normal_TE.sum(0, dtype=torch.float64)
            self._squares_E += normal_TE.square_().sum(0, dtype=torch.float64)
            self._count += len(normal_TE)

    def distance(self) -> float:
        """Compute the shift, in deviations of training patches; NaN for a single patch."""
        if self._count < 2:
            return math.nan
        mean_E = self._total_E / self._count
        by_chance = (self._squares_E / self._count - mean_E.square()).mean() / (self._count - 1)
        return math.sqrt(max(0.0, float(mean_E.square().mean() - by_chance)))


def sampled(slides: Sequence[T]) -> Sequence[T]:
    """Choose the training slides that the reach is measured on: all, or some hundreds over the whole list."""
    return slides[:: max(1, len(slides) // SAMPLED_SLIDES)]


def reach_of(normaliser: Normaliser, sources: Iterable[PatchSource], *, seed: int) -> float | None:
    """Measure how far training slides themselves lie from their mean.

    Args:
        normaliser: Fitted on them.
        sources: Embeddings of some training slides.
        seed: Of the patches that are looked at.

    Returns:
        The 99 % quantile of their shifts; None without a slide of two patches.
    """
    generator = np.random.default_rng(seed)
    found = []
    for source in sources:
        count = min(len(source), SAMPLED_PATCHES)
        chosen = np.sort(generator.choice(len(source), size=count, replace=False))
        shift = Shift(normaliser)
        with torch.no_grad():
            shift.add(torch.as_tensor(np.array(source.take(chosen))))
        found.append(shift.distance())
    known = [distance for distance in found if math.isfinite(distance)]
    return float(np.quantile(known, REACH_QUANTILE)) if known else None


def shift_doubts(distance: float | None, reach: float | None, *, num_patches: int) -> list[str]:
    """List the doubt that a slide's shift raises, if it raises one.

    Args:
        distance: The slide's, None or NaN where it is not known.
        reach: That of the training slides, None where the bundle does not have it.
        num_patches: Of the slide: the mean of few patches is uncertain, and only what is beyond that counts.
    """
    if distance is None or reach is None or not math.isfinite(distance):
        return []
    certain = math.sqrt(max(0.0, distance**2 - 1 / num_patches))
    times = certain / max(reach, _LEAST_REACH)
    if not times > MARGIN:
        return []
    return [
        f"its patches lie {times:.1f} times as far from the training slides' mean as nearly all of those do: other "
        "tissue, stain, scanner or resolution? its scores may mean nothing"
    ]


def usual_patches(counts: Sequence[int]) -> int | None:
    """Count the patches that 99 % of the training slides do not exceed; None without slides."""
    return int(np.quantile(counts, USUAL_QUANTILE, method="higher")) if len(counts) else None


def size_doubts(num_patches: int, usual: int | None, *, slide_score: str) -> list[str]:
    """List the doubt that a slide raises which is far larger than those of training.

    Args:
        num_patches: Of the slide.
        usual: What ``usual_patches`` gave for the training slides; None where the bundle does not have it.
        slide_score: The read-out that counts.
    """
    if not usual or num_patches <= TIMES_LARGER * usual:
        return []
    advice = {
        "bag": "a small lesion is thinned out there and is easily missed",
        "regions": "small lesions are missed more often there",
    }.get(slide_score, "a normal patch is more often high by chance there")
    larger = f"its {num_patches} patches are {num_patches / usual:.1f} times those of nearly all training slides"
    return [
        f"{larger} ({usual}): {advice}"
        + ("" if slide_score == "regions" else "; prediction.slide_score=regions bears size best")
    ]
