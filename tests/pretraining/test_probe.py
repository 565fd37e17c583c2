"""The measures of embeddings: spread, rank and a linear probe, against other ways to compute them."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from distmil.pretraining import probe
from distmil.pretraining.history import History
from distmil.pretraining.probe import Sample, SlidePatches, draw_sample, measure, probe_auc, rank, spread
from tests.support.scale import cases

LINE = "the embeddings of all patches lie on one line (effective rank 1)"


@pytest.mark.parametrize("seed", range(cases(60, full=1000)))
def test_the_rank_is_the_number_of_even_directions(seed: int) -> None:
    draw = np.random.default_rng(seed)
    width, directions = int(draw.integers(8, 40)), int(draw.integers(1, 8))
    basis = np.linalg.qr(draw.normal(size=(width, width)))[0][:directions]
    corners = np.repeat(np.concatenate([np.eye(directions), -np.eye(directions)]), 5, axis=0)
    embedding = corners @ basis * draw.uniform(0.1, 10) + draw.normal(size=width)
    assert rank(embedding) == pytest.approx(directions, rel=1e-4)


@pytest.mark.parametrize("seed", range(cases(30, full=500)))
def test_the_spread_is_0_for_one_embedding_and_1_for_even_ones(seed: int) -> None:
    draw = np.random.default_rng(seed)
    width = int(draw.integers(16, 64))
    even = draw.normal(size=(2000, width))
    assert spread(even) == pytest.approx(1, abs=0.02)
    assert spread(even * 7.0) == pytest.approx(spread(even))
    assert spread(even * 1e-4 + draw.normal(size=width)) < 0.001


@pytest.mark.parametrize("seed", range(cases(20, full=300)))
def test_the_probe_is_a_ridge_regression_of_equal_classes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count, width = int(draw.integers(30, 90)), int(draw.integers(3, 40))
    known, asked = draw.normal(size=(count, width)), draw.normal(size=(10, width))
    is_target = draw.random(count) < 0.3
    is_target[:2] = (True, False)
    mean, deviation = known.mean(0), known.std(0)
    weight = np.where(is_target, 0.5 / is_target.sum(), 0.5 / (~is_target).sum())
    other = Ridge(alpha=probe.RIDGE, fit_intercept=False)
    other.fit((known - mean) / deviation, 2.0 * is_target - 1, sample_weight=weight)
    wanted = other.predict((asked - mean) / deviation)
    assert np.allclose(probe._ridge(known, is_target, asked), wanted, atol=1e-8)


def slides_with(draw: np.random.Generator, *, labels: bool) -> list[SlidePatches]:
    """Slides of many sizes, every second one positive with some target patches."""
    found = []
    for number in range(12):
        count = int(draw.integers(30, 90))
        label_N = np.full(count, -1, np.int8) if not labels else np.zeros(count, np.int8)
        if labels and number % 2:
            label_N[draw.permutation(count)[:12]] = 1
        found.append(SlidePatches(number % 2, label_N))
    return found


@pytest.mark.parametrize("seed", range(cases(30, full=500)))
def test_a_sample_takes_equally_many_of_every_slide_and_halves_by_slides(seed: int) -> None:
    draw = np.random.default_rng(seed)
    slides = slides_with(draw, labels=True)
    sample = draw_sample(slides, count=240, seed=seed)
    assert np.bincount(sample.slide_N).tolist() == [20] * 12
    assert len(set(sample.patch_N.tolist())) == 240
    starts = np.cumsum([0, *(len(slide.label_N) for slide in slides)])
    assert np.array_equal(np.searchsorted(starts, sample.patch_N, side="right") - 1, sample.slide_N)
    label_N = np.concatenate([slide.label_N for slide in slides])[sample.patch_N]
    assert np.array_equal(sample.is_target_N, label_N > 0)
    assert sample.is_target_N.sum() == 60
    halves = [set(sample.slide_N[sample.half_N == half].tolist()) for half in (0, 1)]
    assert halves[0].isdisjoint(halves[1])
    assert len(halves[0]) == len(halves[1]) == 6
    assert all(sum(slide % 2 for slide in half) == 3 for half in halves)


@pytest.mark.parametrize("labels", [True, False])
def test_the_probe_finds_a_label_that_is_in_the_embeddings_and_none_that_is_not(labels: bool) -> None:
    draw = np.random.default_rng(0)
    sample = draw_sample(slides_with(draw, labels=labels), count=600, seed=0)
    assert sample.kind == ("patch labels" if labels else "slide labels")
    noise = draw.normal(size=(len(sample.patch_N), 6))
    told = noise.copy()
    told[:, 2] += 3 * sample.is_target_N
    assert (probe_auc(told, sample) or 0) > 0.97
    assert 0.2 < (probe_auc(noise, sample) or 0) < 0.8


def test_without_labels_of_both_kinds_there_is_no_probe() -> None:
    draw = np.random.default_rng(0)
    slides = [SlidePatches(label, np.full(40, -1, np.int8)) for label in (0, 0, 0, None)]
    sample = draw_sample(slides, count=64, seed=0)
    assert sample.kind == "none"
    assert measure(draw.normal(size=(len(sample.patch_N), 4)), sample)["probe_auc"] is None


@pytest.mark.parametrize(
    ("embedding", "said"),
    [
        (np.ones((50, 6)), "the encoder gives nearly one embedding for all patches (spread 0 of 1)"),
        (np.linspace(-1, 1, 50)[:, None] * np.ones(6), LINE),
        (np.random.default_rng(0).normal(size=(50, 6)), None),
    ],
)
def test_a_collapse_is_told(embedding: np.ndarray, said: str | None) -> None:
    nothing = np.zeros(50, bool)
    sample = Sample(np.arange(50), np.arange(50), nothing, nothing, np.full(50, -1), "none")
    row = measure(embedding, sample)
    assert History(rows=[row, row]).collapse == said
    assert History(rows=[row]).collapse is None  # as it began
