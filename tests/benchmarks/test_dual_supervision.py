"""The benchmark of labels and losses: the read-out ``regions`` out of fold."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.dual_supervision import auc_of_regions
from distmil.bags.bag import Bag
from distmil.inference.scoring import BagScores
from tests.support.bags import make_bag

FOLD_OF = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def scored(fused_N: NDArray[np.float64]) -> BagScores:
    nothing = np.zeros(len(fused_N), np.float32)
    return BagScores(nothing, nothing, nothing, fused_N.astype(np.float32), nothing[:, None], np.zeros(2), 0, 0, 0)


def slides() -> tuple[list[Bag], list[BagScores]]:
    """Slides of 70 patches in rows of 7; on odd ones two by two neighbours are a little high."""
    generator = np.random.default_rng(3)
    bags, scores = [make_bag(i, size=70) for i in range(12)], []
    for i in range(12):
        fused = generator.uniform(0.05, 0.3, size=70)
        if i % 2:
            fused[[16, 17, 23, 24]] = 0.5
        scores.append(scored(fused))
    return bags, scores


def test_neighbours_that_are_high_together_are_found_out_of_fold() -> None:
    bags, scores = slides()
    assert auc_of_regions(bags, scores, FOLD_OF) == 1.0
    other_way_round = [replace(bag, label=1 - (bag.label or 0)) for bag in bags]
    assert auc_of_regions(other_way_round, scores, FOLD_OF) == 0.0


@pytest.mark.parametrize("label", [0, 1])
def test_slides_of_one_class_have_no_auc(label: int) -> None:
    bags, scores = slides()
    assert math.isnan(auc_of_regions([replace(bag, label=label) for bag in bags], scores, FOLD_OF))
