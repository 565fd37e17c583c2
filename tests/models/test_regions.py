"""The read-out ``regions``: windows counted one by one, grids of any stride, and what it is for."""

import itertools
import math

import numpy as np
import pytest

from distmil.models.regions import WINDOWS, PatchEvidence, Places, ScoreGrid, fit_evidence, fitted_slides
from tests.support.scale import cases

EVIDENCE = PatchEvidence(0.6, -0.4)


def places_of(cells, *, stride, extent_px, origin=(0, 0)):
    x, y = (np.array([round((start + cell[axis]) * stride) for cell in cells], np.int32)
            for axis, start in zip((1, 0), origin, strict=True))  # fmt: skip
    return Places(x, y, extent_px)


def by_hand(fused, cells, evidence, apart=1):
    """Go through every place of every window, patch by patch, with plain numbers."""
    ratio = {tuple(cell): math.exp(evidence.slope * math.log(q / (1 - q)) + evidence.offset)
             for cell, q in zip(cells, fused, strict=True)}  # fmt: skip
    means = []
    for rows, columns in WINDOWS:
        products = []
        for row, column in ratio:
            inside = [(row + i * apart, column + j * apart) for i, j in itertools.product(range(rows), range(columns))]
            if all(cell in ratio for cell in inside):
                products.append(math.prod(ratio[cell] for cell in inside))
        if products:
            means.append(sum(products) / len(products))
    mean = sum(means) / len(means)
    return mean / (1 + mean)


@pytest.mark.parametrize("seed", range(cases(100, full=2000)))
def test_every_window_of_any_grid_counts_once(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 12, size=2)
    cells = [(i, j) for i in range(height) for j in range(width) if rng.random() < rng.choice([0.5, 0.9, 1.0])]
    cells = list({*cells, (0, 0), (0, 1), (1, 0)})  # neighbours on both axes tell the stride
    extent_px = int(rng.integers(40, 900))
    apart = int(rng.choice([1, 1, 1, 2, 3]))
    stride = extent_px / apart + (rng.uniform(-0.4, 0.4) if apart == 1 else 0)
    order = rng.permutation(len(cells))
    cells = [cells[i] for i in order]
    fused = rng.uniform(1e-5, 1 - 1e-5, size=len(cells))
    places = places_of(cells, stride=stride, extent_px=extent_px, origin=rng.integers(0, 90, size=2))
    found = ScoreGrid.of(fused, places).score(EVIDENCE)
    assert found == pytest.approx(by_hand(fused, cells, EVIDENCE, apart), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_one_patch_row_or_column_is_a_grid_too(shape):
    cells = list(itertools.product(range(shape[0]), range(shape[1])))
    fused = np.random.default_rng(0).uniform(0.01, 0.99, size=len(cells))
    found = ScoreGrid.of(fused, places_of(cells, stride=224, extent_px=224)).score(EVIDENCE)
    assert found == pytest.approx(by_hand(fused, cells, EVIDENCE), rel=1e-9)


@pytest.mark.parametrize("seed", range(cases(20, full=200)))
def test_features_on_no_common_grid_are_scored_all_the_same(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 20_000, size=(2, 200)).astype(np.int32)
    score = ScoreGrid.of(rng.random(200), Places(x, y, 512)).score(EVIDENCE)
    assert 0 <= score <= 1


def test_an_eighth_of_an_edge_is_a_grid_and_less_is_none():
    """Patches in steps of a ninth lie in cells of an edge, where the highest stands for all of them."""
    fused = np.array([0.2] * 8 + [0.9])
    for parts, apart in ((8, 8), (9, 1)):
        x = np.arange(9, dtype=np.int32) * (720 // parts)
        grids = ScoreGrid.of(fused, Places(x, np.zeros(9, np.int32), 720)).logits
        assert len(grids) == apart
    assert sorted(grids[0].ravel()) == pytest.approx(np.log([0.2 / 0.8, 0.9 / 0.1]))


def test_columns_two_and_three_steps_apart_are_no_neighbours():
    x = np.array([0, 200, 500], np.int32)
    (grid,) = ScoreGrid.of(np.full(3, 0.5), Places(x, np.zeros(3, np.int32), 100)).logits
    assert np.flatnonzero(~np.isnan(grid[0])).tolist() == [0, 2, 5]


def test_scores_of_0_and_1_stay_finite():
    places = places_of([(0, 0), (0, 1)], stride=100, extent_px=100)
    for fused in ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0]):
        assert 0 <= ScoreGrid.of(np.array(fused, np.float32), places).score(EVIDENCE) <= 1


def slide(rng, side, *, lesion, apart=False):
    """Fused scores of a square slide whose lesion's patches are higher, side by side or strewn."""
    logit = rng.normal(-3, 1.2, size=(side, side))
    if lesion:
        where = rng.integers(0, side - 3, size=2)
        square = np.zeros((side, side), bool)
        square[where[0] : where[0] + lesion, where[1] : where[1] + lesion] = True
        if apart:
            square = rng.permutation(square.ravel()).reshape(side, side)
        logit[square] = rng.normal(0, 1.2, size=lesion**2)
    cells = list(itertools.product(range(side), range(side)))
    return ScoreGrid.of(1 / (1 + np.exp(-logit.ravel())), places_of(cells, stride=96, extent_px=96))


def gather(value):
    return [value]


def fitted(rng, sides):
    grids = [slide(rng, side, lesion=lesion) for side in sides for lesion in (0, 3)]
    return fit_evidence(grids, [False, True] * len(sides), gather)


def test_neighbours_are_more_than_the_same_patches_strewn():
    rng = np.random.default_rng(0)
    evidence = fitted(rng, [12] * 20)
    together = [slide(rng, 40, lesion=3).log_mean_ratio(evidence) for _ in range(30)]
    strewn = [slide(rng, 40, lesion=3, apart=True).log_mean_ratio(evidence) for _ in range(30)]
    assert np.median(together) > np.median(strewn) + 1


def test_one_threshold_serves_small_and_large_slides():
    rng = np.random.default_rng(1)
    evidence = fitted(rng, [12] * 40)
    for side in (12, 50, 120):
        normal = np.array([slide(rng, side, lesion=0).score(evidence) for _ in range(40)])
        assert np.mean(normal < 0.5) >= 0.75
        assert np.median([slide(rng, side, lesion=3).score(evidence) for _ in range(20)]) > 0.5


def test_the_offset_gives_normal_patches_a_mean_ratio_of_one():
    rng = np.random.default_rng(2)
    grids = [slide(rng, 15, lesion=lesion) for lesion in (0, 0, 3)]
    evidence = fit_evidence(grids, [False, False, True], gather)
    normal = np.concatenate([grid.logit_N for grid in grids[:2]])
    assert np.exp(evidence.log_ratio(normal)).mean() == pytest.approx(1)


def test_workers_fit_what_one_worker_fits():
    rng = np.random.default_rng(3)
    is_positive = [i % 2 == 1 for i in range(9)]
    grids = [slide(rng, int(rng.integers(5, 20)), lesion=3 * positive) for positive in is_positive]
    whole = fit_evidence(grids, is_positive, gather)
    calls = {rank: [] for rank in range(3)}

    def of_worker(rank, told):
        """Answer a worker's calls with what all workers said in that call."""
        answers = iter(told)

        def gather(value):
            calls[rank].append(value)
            return next(answers, [value])

        return fit_evidence(grids[rank::3], is_positive[rank::3], gather)

    told: list[list] = []
    for _ in range(2):
        for rank, values in calls.items():
            values.clear()
            of_worker(rank, told)
        told.append([calls[rank][len(told)] for rank in calls])
    for rank in calls:
        found = of_worker(rank, told)
        assert (found.slope, found.offset) == (whole.slope, pytest.approx(whole.offset))


@pytest.mark.parametrize("is_positive", [[True, True], [False, False], []])
def test_slides_of_one_class_give_no_evidence(is_positive):
    rng = np.random.default_rng(4)
    grids = [slide(rng, 6, lesion=0) for _ in is_positive]
    assert fit_evidence(grids, is_positive, gather) is None


def test_many_slides_are_fitted_on_about_a_hundred_of_each_class():
    is_positive = [i % 2 == 0 for i in range(5000)]
    chosen = fitted_slides(is_positive)
    counts = [sum(is_positive[i] == side for i in chosen) for side in (True, False)]
    assert counts == [100, 100]
    assert fitted_slides([True, False, True]) == {0, 1, 2}
