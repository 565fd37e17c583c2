"""Where a bag's patches come from: embeddings on disk, or images for a trainable encoder.

N patches of a bag, E embedding.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distmil.encoders.augmentation import augmented
from distmil.storage.records import Part
from distmil.storage.store import Store
from distmil.tiling.shards import decode_image, read_patches

if TYPE_CHECKING:  # torch takes seconds to import, and not every job needs it
    from torch import Tensor

Indices = NDArray[np.int64]
Patches: TypeAlias = "NDArray[Any] | Tensor"
MAX_DECODERS = 16


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
    slide_id: str = ""
    view: int = 0
    """Number of the view, whose patches are augmented; 0: the patches as they are."""
    stain_shift: float = 0.0
    """Of a view; see ``encoder.stain_shift``."""

    @cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *(part.rows for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Indices | slice) -> NDArray[np.uint8]:
        """Decode RGB patches, N x H x W x 3."""
        chosen = np.arange(*indices.indices(len(self))) if isinstance(indices, slice) else indices
        part_of, row_of = _locate(self._starts, chosen)
        columns = ["image", "x", "y"] if self.view else ["image"]
        found: dict[int, Future[NDArray[np.uint8]]] = {}
        for part in np.unique(part_of).tolist():
            kept = self.parts[part]
            table = read_patches(self.store, f"{self.folder}/{kept.name}", columns=columns, kept_as=kept)
            where = np.flatnonzero(part_of == part)
            rows = table.take(row_of[where]).to_pylist()
            found |= {int(i): _decoders().submit(self._seen, row) for i, row in zip(where, rows, strict=True)}
        return np.stack([found[i].result() for i in range(len(chosen))])

    def _seen(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Decode one patch, H x W x 3, as the view shows it."""
        image_HW3 = decode_image(row["image"])
        if not self.view:
            return image_HW3
        place = (row["x"], row["y"])
        return augmented(image_HW3, view=self.view, slide_id=self.slide_id, place=place, spread=self.stain_shift)

    def pieces(self, indices: Indices | slice) -> list[NDArray[np.uint8]]:
        """Decode the chosen patches into one piece."""
        return [self.take(indices)]


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """Make the threads that decode patches: codecs and OpenCV let others run meanwhile."""
    return ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")


def _locate(starts: Indices, indices: Indices) -> tuple[Indices, Indices]:
    """Find the part of each patch, and its row there."""
    part_of = np.searchsorted(starts, indices, side="right") - 1
    return part_of, indices - starts[part_of]


def find_not_finite(matrix_NE: NDArray[np.float16]) -> int | None:
    """Find the first row that holds an infinity or a NaN, None if all are finite."""
    bad = np.flatnonzero(~np.isfinite(matrix_NE).all(axis=1))
    return int(bad[0]) if len(bad) else None
