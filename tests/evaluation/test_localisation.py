"""The pointing game and overlap by hand and against plain loops."""

import numpy as np
import pytest

from distmil.evaluation.froc import FALSE_POSITIVES
from distmil.evaluation.intervals import Bootstrap
from distmil.evaluation.lesions import Lesions
from distmil.evaluation.localisation import localisation_of, localise, overlap_of
from distmil.evaluation.metrics import PATCH_SCORES
from tests.evaluation.test_intervals import middle, some_rows
from tests.support.scale import cases

GRID = tuple(np.array(values, np.int32) for values in ([0, 100, 200, 300], [0, 0, 0, 0], [100] * 4))
# one lesion on the third patch
LESION = Lesions(np.array([[-1, -1, 0, -1]], np.int32), 1, pixel_px=100)


def scores(*rows):
    return [np.array(row, np.float32) for row in rows]


def found_of(label_N, *rows, lesions=LESION):
    return localise(GRID, scores(*rows), np.array(label_N, np.int8), lesions)


def test_the_best_patch_of_each_score_hits_or_misses():
    found = found_of([0, 0, 1, 0], [9, 1, 2, 3], [1, 2, 9, 3], [1, 1, 8, 9])
    assert found.is_pointed == (False, True, False)
    # by attention the lesion's patch is suppressed by its better neighbour, by fused too
    assert np.nan_to_num([slide.lesion_L[0] for slide in found.detections], nan=-1).tolist() == [-1, 9, -1]


@pytest.mark.parametrize("label_N", [[0, 0, 0, 0], [-1, 0, 1, 0]])
def test_slides_without_a_target_or_with_an_unknown_best_patch_do_not_point(label_N):
    assert found_of(label_N, [9, 1, 2, 3], [9, 2, 1, 3], [9, 1, 8, 3]).is_pointed == ()


def test_metrics_of_two_slides():
    hit = found_of([0, 0, 1, 0], [1, 0, 9, 0], [1, 0, 9, 0], [9, 0, 1, 0])
    none = found_of([0, 0, 0, 0], [5, 0, 0, 5], [5, 0, 0, 5], [5, 0, 0, 5], lesions=Lesions.none())
    found = localisation_of([hit, none], ["a", "b"], draws=20)
    assert [found.metrics[f"pointing_{name}"] for name in PATCH_SCORES] == [1, 1, 0]
    # by fused the lesion's patch is suppressed by no neighbour of higher score, and comes after three false positives
    assert found.metrics["lesion_froc_probability"] == 1
    assert found.metrics["lesion_froc_fused"] == pytest.approx(sum(at >= 1.5 for at in FALSE_POSITIVES) / 6)
    assert found.counts == {"lesions": 1, "isolated_cells": 0, "lesion_slides": 2, "pointing_slides": 1}
    assert [row["false_positives_per_slide"] for row in found.rows[:7]] == [*FALSE_POSITIVES, "mean"]
    assert len(found.rows) == 7 * len(PATCH_SCORES)


def test_slides_without_any_target_say_nothing():
    none = found_of([0, 0, 0, 0], [5, 0, 0, 5], [5, 0, 0, 5], [5, 0, 0, 5], lesions=Lesions.none())
    assert localisation_of([none], ["a"]).metrics == {}
    assert localisation_of([], []).metrics == {}


def test_overlap_is_that_of_sets_and_its_interval_that_of_copied_patients():
    rng = np.random.default_rng(0)
    for _ in range(cases(20, full=500)):
        rows = some_rows(rng, 12)
        patients = [f"p{i}" for i in rng.integers(0, 6, 12)]
        threshold = float(rng.random())
        metrics, intervals = overlap_of(rows, patients, threshold=threshold, draws=30)

        def plain(times, rows=rows, threshold=threshold):
            drawn = [row for row, n in zip(rows, times, strict=True) for _ in range(n)]
            called = np.concatenate([row.scores_N[1].astype(float) >= threshold for row in drawn] or [[]])
            target = np.concatenate([row.is_target_N for row in drawn] or [[]])
            both, either = (called & target).sum(), (called | target).sum()
            return (2 * both / (both + either), both / either) if either else (np.nan, np.nan)

        dice, iou = plain([1] * 12)
        assert (metrics["patch_dice"], metrics["patch_iou"]) == pytest.approx((dice, iou))
        bootstrap = Bootstrap.of(patients, draws=30)
        drawn = np.array([plain(n) for n in bootstrap.weight_PD[bootstrap.patient_S].astype(int).T])
        assert intervals["patch_dice"] == pytest.approx(middle(drawn[:, 0]))
        assert intervals["patch_iou"] == pytest.approx(middle(drawn[:, 1]))


def test_overlap_of_nothing_is_not_defined():
    rows = [row for row in some_rows(np.random.default_rng(1), 20) if not row.is_target_N.any()]
    assert overlap_of(rows, ["p"] * len(rows), threshold=1.1)[0] == {"patch_dice": None, "patch_iou": None}
