"""Foreign slides lie far from the training slides' mean; slides of few patches do not for their number alone."""

import math

import numpy as np
import pytest
import torch

from distmil.bags.source import EmbeddingSource
from distmil.inference.shift import (
    MARGIN,
    SAMPLED_PATCHES,
    Shift,
    reach_of,
    shift_doubts,
    size_doubts,
    usual_patches,
)
from distmil.models.normaliser import Normaliser
from tests.support.scale import cases

WIDTH = 64


def fitted(rng, slides):
    normaliser = Normaliser(WIDTH)
    normaliser.fit(torch.tensor(np.concatenate(slides)))
    return normaliser


def cohort(rng, count, *, spread=0.1, sizes=(20, 400)):
    """Make slides whose patches scatter around a mean that differs a little from slide to slide."""
    offset, scale = rng.normal(size=WIDTH), rng.uniform(0.1, 10, WIDTH)
    slides = []
    for _ in range(count):
        patches = rng.normal(size=(int(rng.integers(*sizes)), WIDTH)) + spread * rng.normal(size=WIDTH)
        slides.append((patches * scale + offset).astype(np.float32))
    return slides


def distance(normaliser, embedding_NE, pieces=1):
    shift = Shift(normaliser)
    for piece in np.array_split(embedding_NE, pieces):
        shift.add(torch.tensor(piece))
    return shift.distance()


def test_the_shift_is_the_plain_formula_whatever_the_pieces():
    rng = np.random.default_rng(0)
    for _ in range(cases(20, full=500)):
        slides = cohort(rng, 5)
        normaliser = fitted(rng, slides)
        slide = slides[0] * rng.uniform(0.5, 2)
        low, high, mean, scale = (values.numpy() for values in (normaliser.low, normaliser.high, normaliser.mean, normaliser.scale))  # fmt: skip  # noqa: E501
        z = (slide.clip(low, high).astype(np.float64) - mean) * scale
        expected = math.sqrt(max(0.0, (z.mean(0) ** 2).mean() - z.var(0, ddof=1).mean() / len(z)))
        for pieces in (1, 3):
            assert distance(normaliser, slide, pieces) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_foreign_slide_raises_doubt_and_one_more_of_the_cohort_does_not():
    rng = np.random.default_rng(1)
    flagged = []
    for _ in range(cases(10, full=200)):
        slides = cohort(rng, 60)
        normaliser = fitted(rng, slides[:40])
        reach = reach_of(normaliser, [EmbeddingSource([slide]) for slide in slides[:40]], seed=0)
        flagged += [
            bool(shift_doubts(distance(normaliser, slide), reach, num_patches=len(slide))) for slide in slides[40:]
        ]
        foreign = slides[40] + 1.5 * slides[40].std(0)
        (doubt,) = shift_doubts(distance(normaliser, foreign), reach, num_patches=len(foreign))
        assert "times as far from the training slides' mean" in doubt
    assert np.mean(flagged) < 0.02


def test_few_patches_alone_raise_no_doubt():
    rng = np.random.default_rng(2)
    slides = cohort(rng, 40, sizes=(200, 400))
    normaliser = fitted(rng, slides)
    reach = reach_of(normaliser, [EmbeddingSource([slide]) for slide in slides], seed=0)
    few = [slide[rng.permutation(len(slide))[:12]] for slide in slides]
    assert (
        np.mean([bool(shift_doubts(distance(normaliser, slide), reach, num_patches=len(slide))) for slide in few])
        <= 0.05
    )


def test_large_slides_are_looked_at_in_part():
    class Counted(EmbeddingSource):
        def take(self, indices):
            taken.append(len(indices))
            return super().take(indices)

    taken = []
    rng = np.random.default_rng(3)
    slides = cohort(rng, 3, sizes=(3000, 3001))
    assert reach_of(fitted(rng, slides), [Counted([slide]) for slide in slides], seed=0) < 0.3
    assert taken == [SAMPLED_PATCHES] * 3


def test_what_is_not_known_raises_no_doubt():
    for shift, reach in ((math.nan, 0.1), (None, 0.1), (3.0, None), (0.1 * MARGIN, 0.1)):
        assert shift_doubts(shift, reach, num_patches=1000) == []
    assert shift_doubts(0.1 * MARGIN + 0.01, 0.1, num_patches=1000)
    assert shift_doubts(0.1 * MARGIN + 0.01, 0.1, num_patches=20) == []
    assert reach_of(Normaliser(WIDTH), [EmbeddingSource([np.zeros((1, WIDTH), np.float32)])], seed=0) is None


def test_a_slide_far_larger_than_those_of_training_raises_doubt():
    usual = usual_patches([100] * 500 + [140] * 499 + [50_000])
    assert usual == 140
    assert size_doubts(420, usual, slide_score="bag") == []
    (doubt,) = size_doubts(1400, usual, slide_score="bag")
    assert "its 1400 patches are 10.0 times those of nearly all training slides (140)" in doubt
    assert doubt.endswith("prediction.slide_score=regions bears size best")
    (doubt,) = size_doubts(1400, usual, slide_score="regions")
    assert "slide_score" not in doubt


def test_without_sizes_of_training_no_size_is_doubted():
    assert usual_patches([]) is None
    assert size_doubts(10**6, None, slide_score="bag") == []
