"""Batches: what a step reads, read ahead or resident."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from distmil.bags.loader import copy_together, load_batch, make_resident, pack, padding
from distmil.bags.sampler import MIXED, Step
from distmil.bags.source import EmbeddingSource
from distmil.config.learning import BagsConfig
from distmil.processes.background import read_ahead
from tests.support.bags import make_bag

CPU = torch.device("cpu")
BAGS = BagsConfig()


def test_a_batch_holds_bags_then_the_mixed_bag_with_its_targets() -> None:
    bags = [make_bag(i, size=20 + i) for i in range(4)]
    step = Step([2, 0], {0: np.array([1, 5, 7])}, np.array([3, 1, 3]), np.array([4, 0, 2]))
    batch = load_batch(bags, step, [2, 0, MIXED], BAGS, CPU)
    assert batch is not None
    assert batch.layout.lengths == (22, 3, 3)
    assert batch.label_B.tolist() == [0, 0]
    assert batch.num_slide_patches == 25
    rows = [bags[2].source.take(slice(None)), bags[0].source.take(np.array([1, 5, 7]))]
    np.testing.assert_array_equal(batch.patches[:25].numpy(), np.concatenate(rows))
    drawn = {(1, 0), (3, 4), (3, 2)}
    for patch, target in zip(batch.patches[25:].numpy(), batch.target_NC.numpy(), strict=True):
        where = [(b, p) for b, p in drawn if np.array_equal(bags[b].source.take(np.array([p]))[0], patch)]
        assert len(where) == 1
        drawn.remove(where[0])
        np.testing.assert_array_equal(target, bags[where[0][0]].target_NC[where[0][1]])
    assert not drawn


def test_resident_bags_give_the_same_batches() -> None:
    bags = [make_bag(i, size=30 + i) for i in range(4)]
    step = Step([2, 0], {0: np.array([1, 5, 7])}, np.array([3, 1, 3]), np.array([4, 0, 2]))
    here = load_batch(bags, step, [2, 0, MIXED], BAGS, CPU)
    resident = load_batch(make_resident(bags, CPU), step, [2, 0, MIXED], BAGS, CPU)
    assert here is not None
    assert resident is not None
    assert torch.equal(here.patches, resident.patches)
    assert torch.equal(here.target_NC, resident.target_NC)


def test_a_step_sees_the_view_it_drew_of_each_bag() -> None:
    bags = [make_bag(i, size=20 + i) for i in range(4)]
    views = [[EmbeddingSource([np.asarray(bag.source.take(slice(None))) + v]) for v in (100, 200)] for bag in bags]
    bags = [replace(bag, views=own) for bag, own in zip(bags, views, strict=True)]
    step = Step([2, 0], {0: np.array([1, 5, 7])}, np.array([3, 1, 3]), np.array([4, 0, 2]), views={0: 2, 1: 0, 2: 1})
    for own in (bags, make_resident(bags, CPU)):
        batch = load_batch(own, step, [2, 0, MIXED], BAGS, CPU)
        assert batch is not None
        rows = batch.patches.numpy()
        np.testing.assert_array_equal(rows[:22], views[2][0].take(slice(None)))
        np.testing.assert_array_equal(rows[22:25], views[0][1].take(np.array([1, 5, 7])))
        np.testing.assert_array_equal(rows[25], bags[1].source.take(np.array([0]))[0])
        np.testing.assert_array_equal(rows[26:], bags[3].source.take(np.array([4, 2])))


def test_reading_ahead_keeps_the_order_and_makes_one_ahead_at_most() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * item

    found = []
    for value in read_ahead(make, range(10)):
        time.sleep(0.01)
        found.append(value)
        assert len(made) <= len(found) + 2  # one waits in the queue, one is being handed over
    assert found == [i * i for i in range(10)]


def test_an_error_while_reading_ahead_is_raised_where_it_is_read() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise OSError("the disk is gone")
        return item

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        found += read_ahead(make, range(5))
    threads = threading.active_count()
    for value in read_ahead(make, range(2)):
        assert value == 0
        break  # the thread ends with the reader
    time.sleep(0.3)
    assert threading.active_count() <= threads


def test_a_padded_batch_is_a_multiple_of_an_eighth_of_a_step_and_the_rest_is_the_same() -> None:
    bags = make_resident([make_bag(i, size=20 + i) for i in range(4)], CPU)
    step = Step([2, 0], {}, np.array([3, 1, 3]), np.array([4, 0, 2]))
    config = BagsConfig(patches_per_step=80)
    plain = load_batch(bags, step, [2, 0, MIXED], config, CPU)
    assert plain is not None
    batch = load_batch(bags, step, [2, 0, MIXED], config, CPU, is_padded=True)
    assert batch is not None
    assert plain.layout.lengths == (22, 20, 3)
    assert batch.layout.lengths == (22, 20, 8, 3)
    assert batch.num_slide_patches == plain.num_slide_patches == 42
    assert torch.equal(batch.top_k.place_K, plain.top_k.place_K)
    whole, padded = plain.patches, batch.patches
    assert torch.equal(padded[:42], whole[:42])
    assert torch.equal(padded[50:], whole[42:])


@pytest.mark.parametrize(("count", "expected"), [(1, 9), (9, 1), (10, 10), (79, 1), (80, 10)])
def test_padding_fills_up_and_is_never_nothing(count: int, expected: int) -> None:
    assert padding(count, 80) == expected
    assert padding(count, 3) == 1


def test_patches_are_packed_in_the_order_of_the_picks() -> None:
    source = EmbeddingSource([np.arange(4_000, dtype=np.float16).reshape(2_000, 2)])
    picks = [np.array([3, 9]), slice(5, 1_005), np.array([7]), slice(2, 4)]
    packed = pack([(source, pick) for pick in picks], CPU)
    np.testing.assert_array_equal(packed.numpy(), np.concatenate([source.take(pick) for pick in picks]))


@pytest.mark.parametrize("seed", range(30))
def test_pieces_are_copied_one_after_the_other_whatever_their_sizes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pieces = [generator.random((size, 3)) for size in generator.integers(0, 50, size=generator.integers(1, 60))]
    packed = np.full((sum(map(len, pieces)), 3), np.nan)
    copy_together(pieces, packed)
    np.testing.assert_array_equal(packed, np.concatenate(pieces))


def test_several_are_made_ahead_at_once_and_come_in_order() -> None:
    together = threading.Barrier(3, timeout=10)

    def make(item: int) -> int:
        if item < 3:
            together.wait()  # passes if three threads make three items at once
        return item

    assert list(read_ahead(make, range(9), ahead=3)) == list(range(9))
