"""Which patches an epoch shows in which order, and how they are cut into steps. NumPy only.

The order does not depend on the workers: each takes its piece of every batch.

N patches of all slides, B patches of a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distmil.bags.source import Indices

WINDOW = 16_384
"""Patches that are shuffled together. Only their shards are read at one time, whatever the cohort's size."""


@dataclass(frozen=True)
class Plan:
    """The steps of a pre-training."""

    shard_sizes: Sequence[int]
    """Patches of each shard, in the order in which patches are numbered."""
    batch_patches: int
    seed: int
    epochs: int
    most_steps: int | None = None

    @cached_property
    def num_patches(self) -> int:
        """Count the patches, N."""
        return sum(self.shard_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Count the steps of a whole epoch."""
        return math.ceil(self.num_patches / self.batch_patches)

    @property
    def num_steps(self) -> int:
        """Count the steps of all epochs; the last epoch may end early."""
        whole = self.epochs * self.steps_per_epoch
        return whole if self.most_steps is None else min(whole, self.most_steps)

    @property
    def num_epochs(self) -> int:
        """Count the epochs, with one that ends early."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def end_of(self, epoch: int) -> int:
        """Return the number of steps that are done when an epoch ends."""
        return min(self.num_steps, (epoch + 1) * self.steps_per_epoch)

    def batches(self, epoch: int, *, first: int) -> Iterator[tuple[int, Indices]]:
        """Yield the steps of an epoch with their patches; batches are of equal size, but for one patch.

        Args:
            epoch: Number of the epoch.
            first: Number of the first step that is left, counted from the start of the pre-training.
        """
        order_N, before = self.order(epoch), epoch * self.steps_per_epoch
        for step in range(first, self.end_of(epoch)):
            start, stop = (self.num_patches * i // self.steps_per_epoch for i in (step - before, step - before + 1))
            yield step, order_N[start:stop]

    def order(self, epoch: int) -> Indices:
        """Shuffle the patches for an epoch: the shards, and then the patches of every few shards; N numbers."""
        generator = np.random.default_rng([self.seed, epoch])
        sizes = np.asarray(self.shard_sizes, np.int64)
        starts = sizes.cumsum() - sizes
        shards = generator.permutation(len(sizes))
        window = (sizes[shards].cumsum() - 1) // WINDOW
        pieces = []
        for number in np.unique(window):
            own = shards[window == number]
            patches = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in own])
            pieces.append(generator.permutation(patches))
        return np.concatenate(pieces)
