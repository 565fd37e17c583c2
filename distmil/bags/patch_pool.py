"""Labelled patches of many bags, and fair draws from them. NumPy only, and no loop over bags.

G bags of a pool, M patches of all of them, D drawn patches.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from distmil.bags.source import Indices


@dataclass(frozen=True)
class PatchPool:
    """The labelled patches of some bags, bag after bag."""

    bag_G: Indices
    """Indices of the bags; each has at least one patch."""
    size_G: Indices
    """How many patches each has here."""
    patch_M: Indices
    """Where they are in their bags."""

    @classmethod
    def of(cls, found: Mapping[int, Indices]) -> "PatchPool":
        """Gather the patches of bags; those without any are left out."""
        kept = {i: patches for i, patches in found.items() if len(patches)}
        sizes = np.array([len(patches) for patches in kept.values()], np.int64)
        nothing = np.empty(0, np.int64)
        return cls(np.array(list(kept), np.int64), sizes, np.concatenate([nothing, *kept.values()]))

    @property
    def size(self) -> int:
        """Count the patches, M."""
        return len(self.patch_M)

    def only(self, bags: Collection[int]) -> "PatchPool":
        """Keep some of the bags."""
        is_kept_G = np.isin(self.bag_G, list(bags))
        return PatchPool(self.bag_G[is_kept_G], self.size_G[is_kept_G], self.patch_M[np.repeat(is_kept_G, self.size_G)])

    def has(self, bag_D: Indices, patch_D: Indices) -> NDArray[np.bool_]:
        """Mark the patches that are in the pool."""
        width = 1 + max(self.patch_M.max(initial=0), patch_D.max(initial=0))  # a key of its own for bag and patch
        return np.isin(bag_D * width + patch_D, np.repeat(self.bag_G, self.size_G) * width + self.patch_M)

    def draw(self, count: int, generator: Generator) -> tuple[Indices, Indices]:
        """Draw patches, bags first so that a large lesion does not crowd out a small one; without repeats while it can.

        Returns:
            Bag indices and patch indices, ``count`` each; none if the pool is empty.
        """
        if not self.size or count == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        turns = np.resize(generator.permutation(len(self.bag_G)), count)
        share_G = _spill(np.bincount(turns, minlength=len(self.bag_G)), self.size_G)
        return np.repeat(self.bag_G, share_G), self.patch_M[draw_places(share_G, self.size_G, generator)]

    def draw_any(self, count: int, generator: Generator) -> tuple[Indices, Indices]:
        """Draw from all patches alike, without repeats; all of them if there are fewer."""
        place_D = generator.choice(self.size, size=min(count, self.size), replace=False)
        group_D = np.searchsorted(self.size_G.cumsum(), place_D, side="right")
        return self.bag_G[group_D], self.patch_M[place_D]


def draw_evenly(pools: Sequence[PatchPool], count: int, generator: Generator) -> tuple[Indices, Indices]:
    """Draw equal numbers of patches from the pools that have any."""
    present = [pool for pool in pools if pool.size]
    nothing = np.empty(0, np.int64)
    draws = [(nothing, nothing)]
    for i, pool in enumerate(present):
        share = count * (i + 1) // len(present) - count * i // len(present)
        draws.append(pool.draw(share, generator))
    return np.concatenate([bags for bags, _ in draws]), np.concatenate([patches for _, patches in draws])


def draw_places(share_G: Indices, size_G: Indices, generator: Generator) -> Indices:
    """Draw places from consecutive ranges, every choice equally likely.

    A place repeats only where a range has fewer places than are drawn from it. Where at most half of a range is drawn,
    repeated places are drawn again. The other ranges are shuffled.

    Args:
        share_G: How many to draw from each range.
        size_G: How long each is.
        generator: Where the draws come from.

    Returns:
        Places in all ranges together, in the order of the ranges.
    """
    start_G = size_G.cumsum() - size_G
    group_D = np.repeat(np.arange(len(share_G)), share_G)
    place_D = start_G[group_D] + generator.integers(size_G[group_D])
    is_dense_G = (2 * share_G > size_G) & (share_G <= size_G)
    if is_dense_G.any():
        place_D[is_dense_G[group_D]] = _shuffled(start_G, share_G, size_G, is_dense_G, generator)
    is_sparse_D = (2 * share_G <= size_G)[group_D]
    while len(again := np.flatnonzero(_came_before(place_D) & is_sparse_D)):
        place_D[again] = start_G[group_D[again]] + generator.integers(size_G[group_D[again]])
    return place_D


def _shuffled(
    start_G: Indices, share_G: Indices, size_G: Indices, is_dense_G: NDArray[np.bool_], generator: Generator
) -> Indices:
    """Shuffle each dense range and take its first places."""
    dense = np.flatnonzero(is_dense_G)
    group_M = np.repeat(dense, size_G[dense])
    first_M = np.repeat(size_G[dense].cumsum() - size_G[dense], size_G[dense])
    rank_M = np.arange(len(group_M)) - first_M
    shuffled_M = np.lexsort((generator.random(len(group_M)), group_M))
    return (start_G[group_M] + shuffled_M - first_M)[rank_M < share_G[group_M]]


def _came_before(place_D: Indices) -> NDArray[np.bool_]:
    """Mark the places that repeat an earlier place."""
    order = place_D.argsort(kind="stable")
    is_repeat = np.zeros(len(place_D), bool)
    is_repeat[order[1:]] = place_D[order[1:]] == place_D[order[:-1]]
    return is_repeat


def _spill(share_G: Indices, size_G: Indices) -> Indices:
    """Move draws from bags that have too few patches to bags that have more, as far as there are any."""
    total = int(share_G.sum())
    if total > size_G.sum():
        return share_G
    taken = np.minimum(share_G, size_G)
    while (missing := total - int(taken.sum())) > 0:
        open_bags = np.flatnonzero(taken < size_G)
        extra = np.bincount(np.resize(open_bags, missing), minlength=len(taken))
        taken = np.minimum(taken + extra, size_G)
    return taken
