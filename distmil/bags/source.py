"""Where a bag's patches come from: embeddings on disk, or images for a trainable encoder.

N patches of a bag, E embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distmil.storage.records import Part
from distmil.storage.store import Store
from distmil.tiling.shards import decode_image, read_patches

if TYPE_CHECKING:  # torch takes seconds to import, and not every job needs it
    from torch import Tensor

Indices = NDArray[np.int64]
Patches: TypeAlias = "NDArray[Any] | Tensor"


class PatchSource(Protocol):
    """Where a bag's patches come from: stored or resident embeddings, or images for a trainable encoder."""

    def __len__(self) -> int: ...

    def take(self, indices: Indices | slice) -> Patches:
        """Take the chosen patches in the given order: N x E embeddings, or N x H x W x 3 pixels."""
        ...

    def pieces(self, indices: Indices | slice) -> Sequence[Patches]:
        """Take the chosen patches in pieces, where the caller copies them anyway."""
        ...


@dataclass(frozen=True)
class EmbeddingSource:
    """Shards of one slide's embeddings, memory-mapped; or arrays of any patches."""

    parts: Sequence[NDArray[Any]]

    @cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Indices | slice) -> NDArray[np.floating[Any]]:
        """Take embeddings, N x E; a slice of one shard is not copied."""
        pieces = self.pieces(indices)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def pieces(self, indices: Indices | slice) -> list[NDArray[np.floating[Any]]]:
        """Take embeddings in pieces; those of a slice are not copied."""
        if isinstance(indices, slice):
            start, stop, _ = indices.indices(len(self))
            found = [
                part[max(0, start - begin) : max(0, stop - begin)]
                for part, begin in zip(self.parts, self._starts, strict=False)
            ]
            return [piece for piece in found if len(piece)] or found[:1]
        part_of, row_of = _locate(self._starts, indices)
        chosen = np.empty((len(indices), *self.parts[0].shape[1:]), self.parts[0].dtype)
        for part in np.unique(part_of):
            where = part_of == part
            chosen[where] = self.parts[part][row_of[where]]
        return [chosen]


@dataclass(frozen=True)
class ImageSource:
    """Patch shards of one slide, decoded when they are taken: what a trainable encoder learns from."""

    store: Store
    folder: str
    parts: Sequence[Part]

    @cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *(part.rows for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Indices | slice) -> NDArray[np.uint8]:
        """Decode RGB patches, N x H x W x 3."""
        chosen = np.arange(*indices.indices(len(self))) if isinstance(indices, slice) else indices
        part_of, row_of = _locate(self._starts, chosen)
        images: dict[int, NDArray[np.uint8]] = {}
        for part in np.unique(part_of).tolist():
            kept = self.parts[part]
            column = read_patches(self.store, f"{self.folder}/{kept.name}", columns=["image"], kept_as=kept)["image"]
            for i in np.flatnonzero(part_of == part).tolist():
                images[i] = decode_image(column[int(row_of[i])].as_py())
        return np.stack([images[i] for i in range(len(chosen))])

    def pieces(self, indices: Indices | slice) -> list[NDArray[np.uint8]]:
        """Decode the chosen patches into one piece."""
        return [self.take(indices)]


def _locate(starts: Indices, indices: Indices) -> tuple[Indices, Indices]:
    """Find the part of each patch, and its row there."""
    part_of = np.searchsorted(starts, indices, side="right") - 1
    return part_of, indices - starts[part_of]


def find_not_finite(matrix_NE: NDArray[np.float16]) -> int | None:
    """Find the first row that holds an infinity or a NaN, None if all are finite."""
    bad = np.flatnonzero(~np.isfinite(matrix_NE).all(axis=1))
    return int(bad[0]) if len(bad) else None
