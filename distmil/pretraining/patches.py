"""The patches of the train slides by their number, decoded and seen twice.

V views, N patches taken, H rows, W columns, 3 channels, P edge of a view.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmil.bags.bag import BagEntry
from distmil.bags.source import Indices
from distmil.pretraining.plan import WINDOW
from distmil.pretraining.views import ViewSettings, two_views
from distmil.storage.records import Part
from distmil.storage.store import Store
from distmil.tiling.shards import decode_image, read_patches

Made = TypeVar("Made")

KEPT_PATCHES = 2 * WINDOW
"""Encoded patches that stay in memory: those of the window at hand, and of the one before or behind it."""


@dataclass(frozen=True)
class Shard:
    """One shard of patches."""

    slide: int
    """Number of its slide."""
    file: str
    part: Part


def shards_of(entries: Sequence[BagEntry]) -> list[Shard]:
    """List the shards of slides, in order: the patches in them are numbered through."""
    return [Shard(slide, *file) for slide, entry in enumerate(entries) for file in entry.shards.files]


@dataclass
class Patches:
    """Reads the patches of shards; the shards that were used last stay in memory, encoded."""

    store: Store
    shards: Sequence[Shard]
    threads: int = 1
    _tables: OrderedDict[int, pa.ChunkedArray] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def starts(self) -> Indices:
        """Number the first patch of each shard, and last all patches."""
        return np.cumsum([0, *(shard.part.rows for shard in self.shards)])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(1, self.threads), thread_name_prefix="views")

    def take(self, indices: Indices) -> NDArray[np.uint8]:
        """Decode patches as they are, N x H x W x 3. Raises: StorageError, UnreadableSlide."""
        return np.stack(self._each(indices, lambda image_HW3, _: image_HW3))

    def views(self, indices: Indices, *, key: Sequence[int], settings: ViewSettings) -> Tensor:
        """Decode patches and make two views of each, V x N x 3 x P x P, uint8.

        Args:
            indices: Numbers of the patches; each one's draws follow from the key and its number.
            key: Such as seed and epoch.
            settings: How views are made.

        Raises:
            StorageError: If a shard is damaged or gone.
            UnreadableSlide: If a patch cannot be decoded.
        """
        if not len(indices):
            return torch.empty(2, 0, 3, settings.edge_px, settings.edge_px, dtype=torch.uint8)

        def see(image_HW3: NDArray[np.uint8], number: int) -> Tensor:
            return two_views(image_HW3, key=[*key, number], settings=settings)

        return torch.stack(self._each(indices, see), dim=1)

    def _each(self, indices: Indices, make: Callable[[NDArray[np.uint8], int], Made]) -> list[Made]:
        """Decode each patch and make something of it, several at once."""
        shard_of = np.searchsorted(self.starts, indices, side="right") - 1
        tables = {int(i): self._encoded(int(i)) for i in np.unique(shard_of)}

        def work(pair: tuple[int, int]) -> Made:
            number, shard = pair
            data = tables[shard][number - int(self.starts[shard])].as_py()
            return make(decode_image(data), number)

        return list(self._pool.map(work, zip(indices.tolist(), shard_of.tolist(), strict=True)))

    def _encoded(self, number: int) -> pa.ChunkedArray:
        """Return the encoded patches of a shard, read from its file or kept."""
        with self._lock:
            found = self._tables.pop(number, None)
            if found is None:
                shard = self.shards[number]
                found = read_patches(self.store, shard.file, columns=["image"], kept_as=shard.part)["image"]
            self._tables[number] = found
            while len(self._tables) > 1 and sum(map(len, self._tables.values())) > KEPT_PATCHES:
                self._tables.popitem(last=False)
            return found
