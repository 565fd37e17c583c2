"""Fair draws of labelled patches from many bags."""

from collections import Counter

import numpy as np
import pytest

from distmil.bags.patch_pool import PatchPool, draw_evenly, draw_places


def pool_of(*sizes: int) -> PatchPool:
    """Bags 10, 20, ... whose patches are 0, 3, 6, ..."""
    return PatchPool.of({10 * (i + 1): 3 * np.arange(size) for i, size in enumerate(sizes)})


@pytest.mark.parametrize("seed", range(200))
def test_places_lie_in_their_ranges_and_do_not_repeat(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 60, size=generator.integers(1, 30))
    shares = generator.integers(0, sizes + 1)
    places = draw_places(shares, sizes, generator)
    starts = sizes.cumsum() - sizes
    group = np.repeat(np.arange(len(sizes)), shares)
    assert len(places) == shares.sum() == len(set(places.tolist()))
    assert (places >= starts[group]).all()
    assert (places < (starts + sizes)[group]).all()


@pytest.mark.parametrize("share", [1, 2, 3, 4, 5, 6])
def test_every_choice_is_equally_likely(share: int) -> None:
    """Of a range of 6 beside another one: every set comes as often, by a chi-squared test at five deviations."""
    generator = np.random.default_rng(share)
    rounds = 6000
    found = Counter(
        frozenset(draw_places(np.array([2, share]), np.array([50, 6]), generator)[2:].tolist()) for _ in range(rounds)
    )
    sets = len([1 for bits in range(64) if bits.bit_count() == share])
    assert len(found) == sets
    expected = rounds / sets
    chi = sum((count - expected) ** 2 / expected for count in found.values())
    assert chi <= (sets - 1) + 5 * (2 * max(1, sets - 1)) ** 0.5


def test_a_range_that_is_too_small_repeats_and_the_others_do_not() -> None:
    places = draw_places(np.array([3, 40, 5]), np.array([100, 4, 6]), np.random.default_rng(0))
    assert len(set(places[:3].tolist())) == 3
    assert set(places[3:43].tolist()) == {100, 101, 102, 103}
    assert len(set(places[43:].tolist())) == 5


def test_a_pool_shares_its_draw_among_bags_and_spills_what_a_bag_lacks() -> None:
    pool = pool_of(2, 500, 500)
    for seed in range(20):
        bags, patches = pool.draw(30, np.random.default_rng(seed))
        assert Counter(bags.tolist()) == {10: 2, 20: 14, 30: 14}
        assert len(set(zip(bags.tolist(), patches.tolist(), strict=True))) == 30
        assert (patches % 3 == 0).all()
    bags, _ = pool_of(1, 2).draw(9, np.random.default_rng(0))  # more than there are: repeats, evenly
    assert sorted(Counter(bags.tolist()).values()) == [4, 5]


def test_a_draw_from_few_of_many_bags_takes_any_of_them() -> None:
    pool = pool_of(*[5] * 50)
    seen = Counter(bag for seed in range(200) for bag in pool.draw(10, np.random.default_rng(seed))[0].tolist())
    assert len(seen) == 50
    assert max(seen.values()) < 3 * min(seen.values())


def test_bags_without_patches_are_left_out() -> None:
    pool = PatchPool.of({3: np.empty(0, np.int64), 4: np.array([7, 9])})
    assert pool.bag_G.tolist() == [4]
    assert pool.size == 2
    nothing = PatchPool.of({})
    assert [len(found) for found in nothing.draw(5, np.random.default_rng(0))] == [0, 0]
    assert [len(found) for found in draw_evenly([nothing], 5, np.random.default_rng(0))] == [0, 0]


def test_pools_share_a_draw_evenly() -> None:
    bags, _ = draw_evenly([pool_of(50), PatchPool.of({}), PatchPool.of({7: np.arange(9)})], 9, np.random.default_rng(0))
    assert Counter(bags.tolist()) == {10: 4, 7: 5}


def test_some_bags_of_a_pool_are_a_pool() -> None:
    pool = pool_of(3, 2, 4).only({10, 30, 99})
    assert pool.bag_G.tolist() == [10, 30]
    assert pool.size_G.tolist() == [3, 4]
    assert pool.patch_M.tolist() == [0, 3, 6, 0, 3, 6, 9]


def test_a_draw_from_all_alike_takes_larger_bags_more_often_and_never_twice() -> None:
    pool = pool_of(10, 90)
    counts: Counter[int] = Counter()
    for seed in range(100):
        bags, patches = pool.draw_any(20, np.random.default_rng(seed))
        assert len(set(zip(bags.tolist(), patches.tolist(), strict=True))) == 20
        counts.update(bags.tolist())
    assert counts[10] / 2000 == pytest.approx(0.1, abs=0.03)
    bags, patches = pool.draw_any(1000, np.random.default_rng(0))
    assert len(set(zip(bags.tolist(), patches.tolist(), strict=True))) == 100
