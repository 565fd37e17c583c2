"""Thresholds: the best of all by trying each, between scores, and none where there is nothing to choose."""

import numpy as np
import pytest

from distmil.evaluation.metrics import choose_thresholds, label_scores, summarise
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import describe_thresholds, threshold_of, youden_threshold
from tests.evaluation.test_metrics import scores
from tests.support.scale import cases


def youden(positive, score, threshold):
    predicted = score >= threshold
    return predicted[positive].mean() - predicted[~positive].mean()


@pytest.mark.parametrize("seed", range(cases(300, full=5000)))
def test_no_other_threshold_is_better(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 40))
    positive = generator.random(count) < generator.uniform(0.1, 0.9)
    score = np.clip(generator.random(count) + positive * generator.uniform(-0.2, 0.5), 0, 1)
    if seed % 2:
        score = np.round(score, 1)  # with ties
    found = youden_threshold(positive, score)
    if positive.all() or not positive.any():
        assert found is None
        return
    tried = [youden(positive, score, t) for t in (*score, *(score + 1e-9))]
    if found is None:
        assert max(tried) <= 1e-12
        return
    assert 0 <= found <= 1
    assert found not in score
    assert youden(positive, score, found) == pytest.approx(max(tried), abs=1e-12)
    middles = [(low + high) / 2 for low, high in np.lib.stride_tricks.sliding_window_view(np.unique(score), 2)]
    best = [t for t in middles if youden(positive, score, t) >= max(tried) - 1e-12]
    assert abs(found - 0.5) == pytest.approx(min(abs(t - 0.5) for t in best))


def test_a_gap_is_cut_in_its_middle():
    assert youden_threshold([False, True, False, True], [0.1, 0.8, 0.2, 0.4]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("positive", "score"),
    [([], []), ([True, True], [0.1, 0.9]), ([False], [0.5]), ([False, True], [0.4, 0.4]), ([False, True], [0.9, 0.1])],
)
def test_where_there_is_nothing_to_choose_there_is_no_threshold(positive, score):
    assert youden_threshold(np.array(positive, bool), score) is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_neighbours_among_floats_are_told_apart(kind):
    low = kind(0.3)
    high = np.nextafter(low, kind(1))
    found = youden_threshold([False, True], np.array([low, high]))
    assert float(low) < found <= float(high)


def judged(label, top, mean, patches=((0.5, 0.5),), label_N=(-1,)):
    bag_C = [1 - label / 2, label / 2] if label < 2 else [0.3, 0.1, 0.6]
    return label_scores(scores(bag_C, patches, top=top, mean=mean), label=label, label_N=np.array(label_N, np.int8))


def test_every_read_out_has_a_threshold_of_its_own():
    rows = [judged(0, 0.8, 0.2), judged(1, 0.9, 0.1), judged(2, 1.0, 0.3)]
    found = choose_thresholds(rows)
    assert set(found) == {"threshold_patch", *(f"threshold_{name}" for name in READ_OUTS)}
    assert found["threshold_bag"] == pytest.approx(0.25)  # 0 against 0.5 and 0.7
    assert found["threshold_max"] == pytest.approx(0.85)
    assert found["threshold_topk_mean"] == pytest.approx(0.25)
    assert found["threshold_patch"] is None
    assert choose_thresholds([]) == {}


def test_the_patch_threshold_is_of_known_patches_of_all_slides():
    rows = [
        judged(1, 0.9, 0.9, patches=[(1, 0.6), (1, 0.99)], label_N=[1, -1]),
        judged(0, 0.1, 0.1, patches=[(1, 0.2), (1, 0.3)], label_N=[0, 0]),
    ]
    assert choose_thresholds(rows)["threshold_patch"] == pytest.approx(0.45)


def test_the_accuracy_is_that_of_the_given_threshold():
    rows = [judged(1, 0.2, 0), judged(0, 0.1, 0)]
    assert summarise(rows, slide_score="max")["slide_accuracy"] == 0.5
    assert summarise(rows, slide_score="max", threshold=0.15)["slide_accuracy"] == 1


def test_the_thresholds_of_an_epoch_are_said():
    row = {"loss": 1.0, "val_threshold_patch": 0.31, "val_threshold_bag": 0.625, "val_threshold_max": None}
    assert describe_thresholds(row, num_slides=12) == (
        "thresholds chosen on 12 validation slides (Youden's J): bag 0.625, patch 0.31; max: 0.5 (one class only "
        "there, or no threshold better than chance)"
    )
    assert [threshold_of(row, name) for name in ("bag", "patch", "max", "topk_mean")] == [0.625, 0.31, 0.5, 0.5]
    for nothing in ({"loss": 1.0}, {"val_threshold_bag": None, "val_threshold_patch": None}):
        assert describe_thresholds(nothing, num_slides=0).startswith("thresholds: 0.5 for slides and patches")
