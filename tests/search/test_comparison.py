"""Comparisons over seeds: which settings are trained again, and what is concluded."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from distmil.bags.sampler import StepPlanner
from distmil.config.root import Config
from distmil.search.comparison import Spread, ablations, compare, repeat_trials, spread_of
from distmil.search.space import with_values
from distmil.training.engine import active_config
from tests.support.bags import make_bags


def test_a_spread_is_of_the_last_rows() -> None:
    row = {"val_slide_loss": 0.4, "val_slide_auc": 0.8, "held_out_slide_auc": 0.7}
    assert spread_of([row, row], "slide_ap") is None
    assert spread_of([row, row], "slide_auc") == Spread((0.8, 0.8))
    assert spread_of([row, row], "slide_auc", "held_out_") == Spread((0.7, 0.7))


def test_the_comparison_is_scipys_paired_test() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.5, 0.02, 5), generator.normal(0.45, 0.02, 5)
    found = compare(Spread(tuple(one)), Spread(tuple(other)))
    assert found.p == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert found.mean == pytest.approx((one - other).mean())
    assert found.low < found.mean < found.high
    assert found.is_better == (found.p < 0.05)


def test_noise_is_no_gain() -> None:
    better = 0
    for seed in range(400):
        one, other = np.random.default_rng(seed).normal(0.5, 0.02, (2, 5))
        better += compare(Spread(tuple(one)), Spread(tuple(other))).is_better
    assert better / 400 < 0.05  # 0.025 is expected: of the two sides of the test only one is a gain


def test_settings_that_come_out_the_same_do_not_break_the_test() -> None:
    same = compare(Spread((0.5, 0.5)), Spread((0.5, 0.5)))
    assert (same.mean, same.p, same.is_better, same.is_worse) == (0.0, None, False, False)
    apart = compare(Spread((0.75, 0.75)), Spread((0.5, 0.5)))
    assert (apart.mean, apart.p, apart.is_better) == (0.25, None, False)  # two draws of nothing prove nothing


def active(values: dict[str, Any], *, annotated: bool = True) -> Config:
    config = with_values(Config(), values)
    planner = StepPlanner(make_bags(8, annotated=annotated), config.bags, num_classes=2, seed=0)
    return active_config(config, planner)[0]


def test_ablations_leave_one_loss_out_each() -> None:
    values = {"losses.topk": 0.0, "bags.top_k": 4}
    found = ablations(active(values), values)
    assert sorted(found) == ["attention", "bag", "patch"]
    assert found["bag"] == {"losses.topk": 0.0, "bags.top_k": 4, "losses.bag": 0.0}
    alone = {f"losses.{name}": 0.0 for name in ("patch", "topk", "attention")}
    assert ablations(active(alone), alone) == {}


def test_ablations_are_of_losses_that_are_trained_with() -> None:
    assert ablations(active({"model.name": "attention"}), {"model.name": "attention"}) == {}
    assert sorted(ablations(active({}, annotated=False), {})) == ["bag", "topk"]


def test_settings_that_are_the_same_are_trained_once() -> None:
    trials = repeat_trials(
        {"default": {"bags.top_k": 8}, "best": {"bags.top_k": 8}, "other": {"bags.top_k": 2}}, [1, 2]
    )
    assert [(trial.values["bags.top_k"], trial.seed) for trial in trials] == [(8, 1), (2, 1), (8, 2), (2, 2)]
