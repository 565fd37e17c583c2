"""Metrics: known values, what is not defined is None, and unknown patches count for nothing."""

import itertools
import math

import numpy as np
import pytest

from distmil.evaluation.metrics import auc, average_precision, label_scores, summarise
from distmil.inference.scoring import BagScores


def scores(bag_C, patches=((0.5, 0.5),), *, top=0.5, mean=0.5):
    """A bag's answers from its class probabilities and (attention, probability) of its patches."""
    attention, probability = np.array(patches, np.float32).T
    bag_C = np.array(bag_C, np.float64)
    return BagScores(
        attention_N=attention,
        probability_N=probability,
        topk_probability_N=probability,
        fused_N=attention * probability,
        class_probability_NC=np.stack([1 - probability, probability], axis=1),
        bag_C=bag_C,
        bag=float(bag_C[1:].sum()),
        max=top,
        topk_mean=mean,
    )


def judged(label, probability, label_N=(-1,), **options):
    bag_C = [1 - probability, probability] if np.isscalar(probability) else probability
    return label_scores(scores(bag_C, **options), label=label, label_N=np.array(label_N, np.int8))


def pairwise_auc(positive, score):
    """The share of pairs in order, ties half: what the area is."""
    pairs = itertools.product(score[positive], score[~positive])
    return np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs])


def test_the_area_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(0)
    positive = generator.random(40) < 0.3
    score = np.round(generator.random(40), 1)  # with ties
    assert auc(positive, score) == pytest.approx(pairwise_auc(positive, score))
    assert auc(positive, -score) == pytest.approx(1 - auc(positive, score))


def test_average_precision_of_a_known_ranking():
    # ranks 1 and 3 of 4 are positive: (1/1 + 2/3) / 2
    assert average_precision([True, False, True, False], [0.9, 0.8, 0.7, 0.1]) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("positive", [[], [True, True], [False, False]])
def test_an_area_of_one_class_is_not_defined(positive):
    assert auc(np.array(positive, bool), np.linspace(0, 1, len(positive))) is None


@pytest.mark.parametrize(("positive", "value"), [([], None), ([False, False], None), ([True, True], 1.0)])
def test_average_precision_needs_a_positive(positive, value):
    assert average_precision(np.array(positive, bool), np.linspace(0, 1, len(positive))) == value


def test_slides_are_judged_by_the_read_out_that_counts():
    # bag puts them right, max puts them wrong, topk_mean is undecided
    rows = [
        judged(1, 0.9, top=0.2, mean=0.5),
        judged(1, 0.6, top=0.1, mean=0.5),
        judged(0, 0.4, top=0.8, mean=0.5),
    ]
    by_bag, by_max = summarise(rows), summarise(rows, slide_score="max")
    for found in (by_bag, by_max):
        assert (found["slide_auc_bag"], found["slide_auc_max"], found["slide_auc_topk_mean"]) == (1, 0, 0.5)
    assert (by_bag["slide_auc"], by_bag["slide_accuracy"]) == (1, 1)
    assert (by_max["slide_auc"], by_max["slide_accuracy"]) == (0, 0)
    assert by_bag["slide_loss"] == by_max["slide_loss"] == pytest.approx(-np.mean(np.log([0.9, 0.6, 0.6])))


def test_a_sure_mistake_costs_much_and_not_infinitely_much():
    assert 20 < summarise([judged(1, 0.0)])["slide_loss"] < math.inf


def test_only_known_patches_count():
    patches = [(0.9, 0.8), (0.1, 0.9), (0.8, 0.1), (0.5, 0.99)]
    rows = [judged(1, 0.9, [1, 0, 0, -1], patches=patches), judged(0, 0.1, [-1, -1, -1, -1], patches=patches)]
    found = summarise(rows)
    assert found["patch_auc_attention"] == 1
    assert found["patch_auc_probability"] == 0.5
    assert found["patch_auc_fused"] == 1
    assert found["patch_ap_probability"] == 0.5
    without = summarise(rows[:1])
    assert {name: without[name] for name in found if name.startswith("patch")} == {
        name: value for name, value in found.items() if name.startswith("patch")
    }


def test_patches_of_all_slides_are_ranked_together():
    # within each slide in order, across them not
    rows = [
        judged(1, 0.9, [1, 0], patches=[(0.5, 0.4), (0.5, 0.3)]),
        judged(1, 0.9, [1, 0], patches=[(0.5, 0.9), (0.5, 0.8)]),
    ]
    assert summarise(rows)["patch_auc_probability"] == 0.75


def test_what_is_not_known_is_none_and_never_a_number():
    found = summarise([judged(1, 0.9)])
    assert found["slide_auc"] is None
    assert found["slide_ap"] == 1
    for name in ("patch_auc_fused", "patch_ap_probability"):
        assert found[name] is None
    assert summarise([]) == {}
    assert not any(value is not None and math.isnan(value) for value in found.values())


def test_with_several_classes_every_one_but_normal_is_positive():
    rows = [judged(2, [0.2, 0.5, 0.3]), judged(1, [0.3, 0.6, 0.1]), judged(0, [0.7, 0.2, 0.1])]
    found = summarise(rows)
    assert (found["slide_auc"], found["slide_accuracy"]) == (1, 1)
    assert found["slide_class_accuracy"] == pytest.approx(2 / 3)
    assert found["slide_loss"] == pytest.approx(-np.mean(np.log([0.3, 0.6, 0.7])))
    assert "slide_class_accuracy" not in summarise([judged(1, 0.9)])


def test_the_order_of_slides_does_not_matter():
    generator = np.random.default_rng(1)
    rows = []
    for i in range(12):
        known = generator.integers(-1, 2, 20)
        rows.append(judged(i % 2, float(generator.random()), known, patches=generator.random((20, 2))))
    one, other = summarise(rows), summarise(rows[::-1])
    for name, value in one.items():
        assert other[name] == pytest.approx(value)
