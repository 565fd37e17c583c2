"""Every patch is seen once an epoch, whatever the numbers of patches, shards, workers and batches."""

import numpy as np
import pytest

from distmil.pretraining import plan as plans
from distmil.pretraining.plan import Plan
from distmil.training.workers import Workers
from tests.support.scale import cases


@pytest.mark.parametrize("seed", range(cases(100, full=3000)))
def test_workers_cover_each_patch_once_an_epoch(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(seed)
    monkeypatch.setattr(plans, "WINDOW", int(draw.integers(1, 200)))
    sizes = draw.integers(1, 60, draw.integers(1, 12)).tolist()
    batch, workers, epochs = int(draw.integers(8, 100)), int(draw.integers(1, 9)), int(draw.integers(1, 4))
    plan = Plan(sizes, batch, seed, epochs)
    orders = []
    for epoch in range(epochs):
        seen, lengths = [], []
        for _, patches in plan.batches(epoch, first=epoch * plan.steps_per_epoch):
            pieces = [patches[slice(*Workers(rank, workers).piece(len(patches)))] for rank in range(workers)]
            assert np.array_equal(np.concatenate(pieces), patches)
            seen += [patch for piece in pieces for patch in piece.tolist()]
            lengths.append(len(patches))
        assert sorted(seen) == list(range(sum(sizes)))
        assert max(lengths) <= batch
        assert max(lengths) - min(lengths) <= 1
        orders.append(seen)
    assert epochs == 1 or sum(sizes) < 10 or orders[0] != orders[1]


@pytest.mark.parametrize("seed", range(cases(50, full=1000)))
def test_what_is_left_of_a_plan_is_its_end(seed: int) -> None:
    draw = np.random.default_rng(seed)
    plan = Plan(draw.integers(1, 60, 6).tolist(), int(draw.integers(8, 40)), 0, 3, int(draw.integers(1, 40)))
    whole = [
        (step, patches.tolist())
        for epoch in range(plan.num_epochs)
        for step, patches in plan.batches(epoch, first=epoch * plan.steps_per_epoch)
    ]
    assert [step for step, _ in whole] == list(range(plan.num_steps))
    assert plan.num_steps == min(plan.most_steps or 0, 3 * plan.steps_per_epoch)
    first = int(draw.integers(0, plan.num_steps))
    epoch = first // plan.steps_per_epoch
    left = [(step, patches.tolist()) for step, patches in plan.batches(epoch, first=first)]
    assert left == whole[first : plan.end_of(epoch)]


def test_an_epoch_reads_the_shards_of_one_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "WINDOW", 100)
    plan = Plan([20] * 40, 16, 0, 1)
    shard_N = plan.order(0) // 20
    spans = [np.flatnonzero(shard_N == shard) for shard in range(40)]
    assert max(span.max() - span.min() for span in spans) < 100
    assert min(span.max() - span.min() for span in spans) >= 20  # and within a window they are mixed
