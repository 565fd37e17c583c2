"""The steps of an epoch: slide bags and a mixed bag each, drawn alike on every worker.

Every bag comes at least once an epoch. A bag larger than a step's budget is a step of its own, which all workers share.

An epoch's steps follow from a seed for all workers; each worker draws the same plan and takes its share of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from distmil.bags.bag import Bag
from distmil.bags.patch_pool import PatchPool, draw_evenly
from distmil.bags.source import Indices, PatchSource
from distmil.config.learning import BagsConfig

MIXED = -1
"""Stands for the mixed bag among bag indices."""


@dataclass(frozen=True)
class Step:
    """One step of all workers: slide bags by index, and the mixed bag as (bag, patch) pairs."""

    bags: Sequence[int]
    samples: Mapping[int, Indices]
    """Patches of the bags that are sampled; the other bags are whole."""
    mixed_bag: Indices
    mixed_patch: Indices
    is_chunked: bool = False
    """Its one slide bag is larger than the budget: every worker takes a piece of it, in chunks."""
    views: Mapping[int, int] = field(default_factory=dict)
    """Which view of a bag's patches is seen, of bags that have any; 0: the patches as they are."""

    def source(self, bags: Sequence[Bag], index: int) -> PatchSource:
        """Return where a bag's patches come from in this step."""
        return bags[index].seen(self.views.get(index, 0))

    def share(self, rank: int, size: int, lengths: Mapping[int, int]) -> list[int]:
        """List the bags that a worker takes whole, and MIXED for the mixed bag; the load is even."""
        load = {} if self.is_chunked else {i: len(self.samples.get(i, range(lengths[i]))) for i in self.bags}
        if len(self.mixed_bag):
            load[MIXED] = len(self.mixed_bag)
        totals, mine = [0] * size, []
        for i in sorted(load, key=lambda key: (-load[key], key)):
            worker = totals.index(min(totals))
            totals[worker] += load[i]
            if worker == rank:
                mine.append(i)
        return mine


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
        self._by_class = [PatchPool.of(_of_class(bags, c)) for c in range(num_classes)]
        labels = {bag.label or 0 for bag in bags}
        self._negatives = [PatchPool.of(_of_class(bags, 0, slide_label=label)) for label in sorted(labels)]
        self._labelled = PatchPool.of({i: np.flatnonzero(bag.is_known_N) for i, bag in enumerate(bags)})
        self._positive = PatchPool.of({i: np.flatnonzero(bag.target_NC[:, 0] < 1) for i, bag in enumerate(bags)})

    @property
    def num_positive(self) -> int:
        """Return how many patches are known to hold target."""
        return sum(pool.size for pool in self._by_class[1:])

    def slides(self, epoch: int) -> list[list[int]]:
        """Return the slides of every step of an epoch: all that must be known before the first step."""
        budget = self._config.patches_per_step
        groups: list[list[int]] = [[]]
        filled = 0
        for i in self._order(epoch, np.random.default_rng([self._seed, epoch])):
            size, group = self._size(i), groups[-1]
            is_full = len(group) == self._config.slides_per_step or filled + size > budget
            if group and (is_full or i in group):
                groups.append([])
                filled = 0
            groups[-1].append(i)
            filled += size
        return groups

    def step(
        self, epoch: int, number: int, slides: Sequence[int], *, with_mixed: bool, with_slides: bool = True
    ) -> Step:
        """Draw one step of an epoch: its samples, its views, and a mixed bag if wanted. The order of draws is free.

        Without slides the step is the same but for its slide bags, which no loss would look at.
        """
        generator = np.random.default_rng([self._seed, epoch, 1 + number])  # a seed's trailing zero would not count
        samples = {
            i: np.sort(generator.choice(self._lengths[i], size=self._size(i), replace=False))
            for i in slides
            if self._size(i) < self._lengths[i]
        }
        nothing = np.empty(0, np.int64)
        mixed = self._mixed(slides, generator) if with_mixed else (nothing, nothing)
        seen = sorted({*slides, *mixed[0].tolist()})
        views = {i: int(generator.integers(self._num_views[i] + 1)) for i in seen if self._num_views[i]}
        if not with_slides:
            return Step([], {}, *mixed, views=views)
        is_chunked = self._size(slides[0]) > self._config.patches_per_step
        return Step(slides, samples, *mixed, is_chunked=is_chunked, views=views)

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

    def _mixed(self, slides: Sequence[int], generator: Generator) -> tuple[Indices, Indices]:
        """Draw a mixed bag by the configured strategy, from two slides at least where two have patch labels."""
        if self._config.mixed == "per_slide":
            return self._per_slide(slides, generator)
        bag_D, patch_D = self._pooled_or_per_class(generator)
        if len(np.unique(bag_D)) == 1 and len(self._labelled.bag_G) > 1:
            others = np.setdiff1d(self._labelled.bag_G, bag_D)
            bag_D[-1:], patch_D[-1:] = self._labelled.only(others).draw(1, generator)
        return bag_D, patch_D

    def _per_slide(self, slides: Sequence[int], generator: Generator) -> tuple[Indices, Indices]:
        """Draw at least one labelled patch of every slide in play, and at least one positive patch."""
        in_play = self._labelled.only(self._completed(slides, generator))
        bag_D, patch_D = in_play.draw(max(self._config.n, len(in_play.bag_G)), generator)
        positive = self._positive.only(in_play.bag_G)
        if positive.size and not positive.has(bag_D, patch_D).any():
            (bag,), (patch,) = positive.draw(1, generator)
            patch_D[np.flatnonzero(bag_D == bag)[0]] = patch
        return bag_D, patch_D

    def _completed(self, slides: Sequence[int], generator: Generator) -> list[int]:
        """Add annotated slides to those in play, until two have patch labels and one a positive patch if any has."""
        chosen = [i for i in slides if i in self._labelled.bag_G]
        if not np.isin(chosen, self._positive.bag_G).any() and self._positive.size:
            chosen.append(int(generator.choice(self._positive.bag_G)))
        others = np.setdiff1d(self._labelled.bag_G, chosen)
        if len(chosen) < 2 and len(others):
            chosen += generator.choice(others, size=min(2 - len(chosen), len(others)), replace=False).tolist()
        return chosen

    def _pooled_or_per_class(self, generator: Generator) -> tuple[Indices, Indices]:
        config = self._config
        if config.mixed == "pooled":
            return self._labelled.draw_any(config.n, generator)
        positives = draw_evenly(self._by_class[1:], config.k_positive, generator)
        negatives = draw_evenly(self._negatives, config.k_negative, generator)
        return np.concatenate([positives[0], negatives[0]]), np.concatenate([positives[1], negatives[1]])


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
