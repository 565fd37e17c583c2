"""What each training step sees: slide bags and a mixed bag, drawn alike on every worker.

Every bag comes at least once an epoch. A bag larger than a step's budget is a step of its own, which all workers share.

An epoch's steps follow from a seed for the whole group; each worker draws the same plan and takes its share of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.random import Generator

from distmil.bags import Bag, Indices, PatchSource
from distmil.config import BagsConfig

MIXED = -1
"""Stands for the mixed bag among bag indices."""


@dataclass(frozen=True)
class Step:
    """One step of the whole group: slide bags by index, and the mixed bag as (bag, patch) pairs."""

    bags: Sequence[int]
    samples: Mapping[int, Indices]
    """Patches of the bags that are sampled; the other bags are whole."""
    mixed_bag: Indices
    mixed_patch: Indices
    is_giant: bool = False
    """Its one slide bag is larger than the budget: every worker takes a piece of it, in chunks."""
    views: Mapping[int, int] = field(default_factory=dict)
    """Which view of a bag's patches is seen, of bags that have any; 0: the patches as they are."""

    def source(self, bags: Sequence[Bag], index: int) -> PatchSource:
        """Return where a bag's patches come from in this step."""
        return bags[index].seen(self.views.get(index, 0))

    def share(self, rank: int, size: int, lengths: Sequence[int]) -> list[int]:
        """Return what one of ``size`` workers takes whole: bags, and MIXED for the mixed bag; the load is even."""
        load = {} if self.is_giant else {i: len(self.samples.get(i, range(lengths[i]))) for i in self.bags}
        if len(self.mixed_bag):
            load[MIXED] = len(self.mixed_bag)
        totals, mine = [0] * size, []
        for i in sorted(load, key=lambda key: (-load[key], key)):
            worker = totals.index(min(totals))
            totals[worker] += load[i]
            if worker == rank:
                mine.append(i)
        return mine


@dataclass(frozen=True)
class PatchPool:
    """The labelled patches of a group of bags, by bag."""

    bags: Sequence[int]
    patches: Sequence[Indices]

    @property
    def size(self) -> int:
        """Return the number of patches."""
        return sum(len(found) for found in self.patches)

    def draw(self, count: int, generator: Generator) -> tuple[Indices, Indices]:
        """Draw patches, bags first so that a large lesion does not crowd out a small one; without repeats while it can.

        Returns:
            Bag indices and patch indices, ``count`` each; none if the pool is empty.
        """
        if not self.bags or count == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        turns = np.resize(generator.permutation(len(self.bags)), count)
        shares = np.bincount(turns, minlength=len(self.bags))
        shares = _spill(shares, np.array([len(found) for found in self.patches])).tolist()
        bag_index, patch_index = [], []
        for bag, found, share in zip(self.bags, self.patches, shares, strict=True):
            if share == 0:
                continue
            picks = generator.choice(len(found), size=share, replace=share > len(found))
            bag_index.append(np.full(share, bag))
            patch_index.append(found[picks])
        return np.concatenate(bag_index).astype(np.int64), np.concatenate(patch_index).astype(np.int64)


def _spill(chosen: Indices, capacity: Indices) -> Indices:
    """Move draws from bags that have too few patches to bags that have more, as far as there are any."""
    total = int(chosen.sum())
    if total > capacity.sum():
        return chosen
    taken = np.minimum(chosen, capacity)
    while (missing := total - int(taken.sum())) > 0:
        open_bags = np.flatnonzero(taken < capacity)
        extra = np.bincount(np.resize(open_bags, missing), minlength=len(taken))
        taken = np.minimum(taken + extra, capacity)
    return taken


class StepPlanner:
    """Draws the steps of an epoch from a seed, alike on every worker."""

    def __init__(
        self, bags: Sequence[Bag], config: BagsConfig, *, num_classes: int, seed: int, epochs: int = 1
    ) -> None:
        self._config = config
        self._seed = seed
        self._epochs = epochs
        self._lengths = [len(bag) for bag in bags]
        self._num_views = [len(bag.views) for bag in bags]
        self._is_positive = np.array([bool(bag.label) for bag in bags])
        self._annotated = np.array([i for i, bag in enumerate(bags) if bag.label and (bag.label_N > 0).any()], np.int64)
        self.num_of_class = np.bincount([bag.label or 0 for bag in bags], minlength=num_classes)
        self._by_class = [_pool_of(_of_class(bags, c)) for c in range(num_classes)]
        labels = {bag.label or 0 for bag in bags}
        self._negatives = [_pool_of(_of_class(bags, 0, slide_label=label)) for label in sorted(labels)]
        self._labelled = _pool_of({i: np.flatnonzero(bag.is_known_N) for i, bag in enumerate(bags)})

    @property
    def num_positive(self) -> int:
        """Return how many patches are known to hold target."""
        return sum(pool.size for pool in self._by_class[1:])

    def steps(self, epoch: int, *, with_mixed: bool, with_slides: bool = True) -> Iterator[Step]:
        """Yield the steps of an epoch: every bag, in an order of its own, with a mixed bag each if wanted.

        Without slides the steps are the same but for their slide bags, which no loss would look at.
        """
        generator = np.random.default_rng([self._seed, epoch])
        budget = self._config.patches_per_step
        group: list[int] = []
        filled = 0
        for i in self._order(epoch, generator):
            size = self._size(i)
            is_full = len(group) == self._config.slides_per_step or filled + size > budget
            if group and (is_full or i in group):
                yield self._step(group, generator, with_mixed=with_mixed, with_slides=with_slides)
                group, filled = [], 0
            group.append(i)
            filled += size
        yield self._step(group, generator, with_mixed=with_mixed, with_slides=with_slides)

    def _order(self, epoch: int, generator: Generator) -> list[int]:
        """Return the epoch's bags in turn: all, annotated ones several times and classes in pairs if wanted."""
        bags = np.arange(len(self._lengths))
        rest = 1 - epoch / (self._epochs - 1) if self._epochs > 1 else 1.0
        extra = round((self._config.oversample - 1) * max(0.0, rest) * len(self._annotated))
        if extra:
            rounds = [generator.permutation(self._annotated) for _ in range(-(-extra // len(self._annotated)))]
            bags = np.concatenate([bags, np.concatenate(rounds)[:extra]])
        order = generator.permutation(bags)
        positive = self._is_positive[order]
        if not self._config.paired or positive.all() or not positive.any():
            return list(map(int, order))
        count = max(int(positive.sum()), int((~positive).sum()))
        pairs = np.stack([np.resize(order[positive], count), np.resize(order[~positive], count)], axis=1)
        return list(map(int, pairs.flatten()))

    def _size(self, bag: int) -> int:
        """Return how many patches of a bag an epoch sees."""
        return min(self._lengths[bag], self._config.sample or self._lengths[bag])

    def _step(self, group: list[int], generator: Generator, *, with_mixed: bool, with_slides: bool) -> Step:
        samples = {
            i: np.sort(generator.choice(self._lengths[i], size=self._size(i), replace=False))
            for i in group
            if self._size(i) < self._lengths[i]
        }
        nothing = np.empty(0, np.int64)
        mixed = self._mixed(group, generator) if with_mixed else (nothing, nothing)
        seen = sorted({*group, *mixed[0].tolist()})
        views = {i: int(generator.integers(self._num_views[i] + 1)) for i in seen if self._num_views[i]}
        if not with_slides:
            return Step([], {}, *mixed, views=views)
        is_giant = self._size(group[0]) > self._config.patches_per_step
        return Step(group, samples, *mixed, is_giant=is_giant, views=views)

    def _mixed(self, group: list[int], generator: Generator) -> tuple[Indices, Indices]:
        """Draw a mixed bag by the configured strategy."""
        config = self._config
        if config.mixed == "pooled":
            order = generator.choice(self._labelled.size, size=min(config.n, self._labelled.size), replace=False)
            return self._flat[0][order], self._flat[1][order]
        if config.mixed == "per_slide":
            here = [at for at, bag in enumerate(self._labelled.bags) if bag in set(group)]
            in_play = PatchPool([self._labelled.bags[at] for at in here], [self._labelled.patches[at] for at in here])
            return in_play.draw(max(config.n, len(here)) if here else 0, generator)
        positives = _draw_evenly(self._by_class[1:], config.k_positive, generator)
        negatives = _draw_evenly(self._negatives, config.k_negative, generator)
        return np.concatenate([positives[0], negatives[0]]), np.concatenate([positives[1], negatives[1]])

    @cached_property
    def _flat(self) -> tuple[Indices, Indices]:
        """Return every labelled patch as (bag, patch)."""
        bags = [np.full(len(found), i) for i, found in zip(self._labelled.bags, self._labelled.patches, strict=True)]
        return np.concatenate(bags), np.concatenate(self._labelled.patches)


def _of_class(bags: Sequence[Bag], class_index: int, *, slide_label: int | None = None) -> dict[int, Indices]:
    """Return each bag's patches of one class, of slides with that label where it is given.

    With soft targets a patch that holds any target counts for its largest class that is not normal.
    """
    found = {}
    for i, bag in enumerate(bags):
        if slide_label is None or (bag.label or 0) == slide_label:
            known = np.flatnonzero(bag.is_known_N)
            target = bag.target_NC[known]
            class_of = np.where(target[:, 0] < 1, 1 + target[:, 1:].argmax(axis=1), 0)
            found[i] = known[class_of == class_index]
    return found


def _draw_evenly(pools: Sequence[PatchPool], count: int, generator: Generator) -> tuple[Indices, Indices]:
    """Draw as many patches from each pool that has any."""
    present = [pool for pool in pools if pool.bags]
    nothing = np.empty(0, np.int64)
    draws = [(nothing, nothing)]
    for i, pool in enumerate(present):
        share = count * (i + 1) // len(present) - count * i // len(present)
        draws.append(pool.draw(share, generator))
    return np.concatenate([bags for bags, _ in draws]), np.concatenate([patches for _, patches in draws])


def _pool_of(found: Mapping[int, Indices]) -> PatchPool:
    kept = {i: patches for i, patches in found.items() if len(patches)}
    return PatchPool(list(kept), list(kept.values()))
