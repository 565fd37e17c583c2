"""How the cores and GPUs of a cluster are shared by the two pools of a chain."""

import numpy as np
import pytest

from distmil.pipeline.cluster import actor_pool
from distmil.pipeline.streaming.chain import share_out
from tests.support.scale import cases


@pytest.mark.parametrize(
    ("cpus", "gpus", "is_gpu", "expected"),
    [
        (16, 2, True, ((14, 1, 0), (2, 0, 1))),
        (1, 1, True, ((1, 1, 0), (1, 0, 1))),  # the last core is not left free
        (2, 0, False, ((2, 0.5, 0), (2, 0.5, 0))),
        (1, 0, False, ((1, 0.5, 0), (1, 0.5, 0))),
        (2, 4, False, ((2, 0.5, 0), (2, 0.5, 0))),
    ],
)
def test_a_known_cluster_is_shared_like_this(cpus, gpus, is_gpu, expected):
    pools = share_out(1000, cpus=cpus, gpus=gpus, is_gpu=is_gpu, limit=512, can_grow=False)
    assert tuple((pool.size, pool.num_cpus, pool.num_gpus) for pool in pools) == expected
    assert all(pool.size == pool.most for pool in pools)


@pytest.mark.parametrize("seed", range(cases(200, full=5000)))
def test_both_pools_always_fit_at_once(seed):
    """Otherwise one would wait for cores that the other holds, which waits for it."""
    rng = np.random.default_rng(seed)
    cpus, gpus = int(rng.integers(1, 2000)), int(rng.integers(0, 40))
    is_gpu, can_grow, limit = bool(gpus and rng.integers(2)), bool(rng.integers(2)), int(rng.choice([1, 2, 512]))
    num_items = int(rng.integers(1, 3000))
    first, second = share_out(num_items, cpus=cpus, gpus=gpus, is_gpu=is_gpu, limit=limit, can_grow=can_grow)
    assert first.size * first.num_cpus + second.size * second.num_cpus <= cpus
    assert first.size * first.num_gpus + second.size * second.num_gpus <= gpus
    for pool in (first, second):
        assert 1 <= pool.size <= pool.most <= limit
        assert can_grow or pool.size == pool.most
    assert first.most <= num_items


@pytest.mark.parametrize(
    ("size", "most", "num_items", "in_flight"),
    [(2, 2, 2, 1), (2, 2, 8, 1), (2, 2, 9, None), (2, 2, None, None), (2, 9, 2, None), (512, 512, 600, 1)],
)
def test_few_items_are_handed_out_one_by_one_where_a_pool_cannot_grow(size, most, num_items, in_flight):
    assert actor_pool(size, most, num_items=num_items).max_tasks_in_flight_per_actor == in_flight
