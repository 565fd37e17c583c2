"""Slides' embeddings and labels on disk, and bags made of them. Embeddings are memory-mapped.

N patches of a bag, E embedding, C classes.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from distmil.bags.source import EmbeddingSource, ImageSource, PatchSource, find_not_finite
from distmil.errors import SlideError, StorageError
from distmil.models.regions import Places
from distmil.storage.records import Part
from distmil.storage.store import Store
from distmil.tiling.shards import check_slide, read_patches

_OPENED_AT_ONCE = 8


@dataclass(frozen=True)
class Shards:
    """A slide's committed shards, JSON-ready."""

    folder: str
    parts: Sequence[Part]

    @property
    def files(self) -> list[tuple[str, Part]]:
        """List the name and the part of each."""
        return [(f"{self.folder}/{part.name}", part) for part in self.parts]


@dataclass(frozen=True)
class BagEntry:
    """A slide as training and prediction need it, JSON-ready: where its shards and labels are.

    The shards hold embeddings, or patches where the encoder is trained too. ``views`` are embeddings of the same
    patches with shifted stains.
    """

    slide_id: str
    label: int | None
    split: str | None
    is_pseudo: bool
    folder: str
    parts: Sequence[Part]
    labels: str | None
    views: Sequence[Shards] = ()
    labels_part: Part | None = None
    """Entry of the label table in its record; None in entries of older versions, whose tables are not verified."""
    num_augmented: int = 0
    """Views of the patches themselves, for a trainable encoder; they are augmented when they are taken."""
    stain_shift: float = 0.0
    """Of these views."""

    @property
    def num_patches(self) -> int:
        """Count the patches."""
        return sum(part.rows for part in self.parts)

    @property
    def shards(self) -> Shards:
        """Take the shards of the patches without shifted stains."""
        return Shards(self.folder, self.parts)

    @property
    def files(self) -> list[tuple[str, Part]]:
        """List the name and the part of every shard, those of views too."""
        return [file for shards in (self.shards, *self.views) for file in shards.files]

    def to_json(self) -> dict[str, Any]:
        """Write the entry as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BagEntry":
        """Rebuild an entry."""
        return _ENTRY.validate_python(values)


_ENTRY = TypeAdapter(BagEntry)


@dataclass(frozen=True)
class Bag:
    """One slide: its label, the source of its patches, and their labels.

    ``label_N`` is the class of each patch, -1 where unknown; ``target_NC`` what training takes it for: class shares, a
    row of NaN where nothing is known. ``views`` are the same patches with shifted stains, for training alone.
    """

    slide_id: str
    label: int | None
    source: PatchSource
    label_N: NDArray[np.int8]
    target_NC: NDArray[np.float32]
    is_pseudo: bool = False
    split: str | None = None
    views: Sequence[PatchSource] = ()
    places: Places | None = None
    """Where the patches lie; None where they are not known."""

    def __len__(self) -> int:
        return len(self.source)

    def seen(self, view: int) -> PatchSource:
        """Choose the patches without shifted stains, 0, or one of their views, from 1 on."""
        return self.views[view - 1] if view else self.source

    @property
    def is_surely_negative(self) -> bool:
        """Whether a person said that no patch holds target."""
        return self.label == 0 and not self.is_pseudo

    @cached_property
    def is_known_N(self) -> NDArray[np.bool_]:
        """Mark the patches that have a label."""
        return ~np.isnan(self.target_NC[:, 0])


def open_bag(store: Store, entry: BagEntry, *, num_classes: int, form: str) -> Bag:
    """Open a slide's bag.

    Args:
        store: Where the entry's files are.
        entry: The slide.
        num_classes: C.
        form: ``class`` or ``fraction``: what the targets are made of.

    Raises:
        StorageError: If a shard is damaged, or labels and shards do not lie on the same grid.
        SlideError: If an embedding is not finite.
    """
    source, places = open_source(store, entry)
    views: list[PatchSource] = [_embeddings(entry, _read_shards(store, entry, view)) for view in entry.views]
    if isinstance(source, ImageSource):
        numbers = range(1, entry.num_augmented + 1)
        views = [replace(source, view=number, stain_shift=entry.stain_shift) for number in numbers]
    return _labelled(store, entry, source, views, places, num_classes=num_classes, form=form)


def open_labels(store: Store, entry: BagEntry, *, num_classes: int, form: str) -> Bag:
    """Open a slide's bag for its labels: the shards, which may be many and far away, stay closed.

    Its patches are embeddings of width 0. Arguments and errors are those of ``open_bag``.
    """
    closed = EmbeddingSource([np.empty((entry.num_patches, 0), np.float16)])
    return _labelled(store, entry, closed, [], None, num_classes=num_classes, form=form)


def _labelled(
    store: Store,
    entry: BagEntry,
    source: PatchSource,
    views: Sequence[PatchSource],
    places: pa.Table | None,
    *,
    num_classes: int,
    form: str,
) -> Bag:
    """Put a slide's patches and labels together. Raises: StorageError if they do not lie on the same grid."""
    label_N = np.full(entry.num_patches, -1, np.int8)
    target_NC = np.full((entry.num_patches, num_classes), np.nan, np.float32)
    if entry.labels is not None:
        labels = labels_of(store, entry)
        if places is not None and any(
            not np.array_equal(places[name].to_numpy(), labels[name].to_numpy()) for name in ("x", "y")
        ):
            raise StorageError(f"{entry.slide_id}: labels and shards lie on different grids; run the job again")
        label_N = labels["label"].fill_null(-1).to_numpy()
        target_NC = targets(labels, num_classes=num_classes, form=form)
    where = None if places is None else Places.of(places)
    return Bag(entry.slide_id, entry.label, source, label_N, target_NC, entry.is_pseudo, entry.split, views, where)


def open_all_bags(store: Store, entries: Sequence[BagEntry], *, num_classes: int, form: str) -> list[Bag]:
    """Open the bags of slides, several at once: hashing leaves other threads alone. See ``open_bag``."""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        return list(pool.map(lambda entry: open_bag(store, entry, num_classes=num_classes, form=form), entries))


def open_source(store: Store, entry: BagEntry) -> tuple[PatchSource, pa.Table]:
    """Open a slide's patches, verified, and their places: slide_id, x, y, extent_px.

    Raises:
        StorageError: If a shard is damaged, gone, or another slide's.
        SlideError: If an embedding is not finite.
    """
    columns = ["slide_id", "x", "y", "extent_px"]
    if entry.parts[0].name.endswith(".parquet"):
        places = pa.concat_tables(
            [read_patches(store, name, columns=columns, kept_as=part) for name, part in entry.shards.files]
        )
        check_slide(places, entry.slide_id, where=store.path(entry.folder))
        return ImageSource(store, entry.folder, entry.parts, entry.slide_id), places
    tables = _read_shards(store, entry, entry.shards)
    return _embeddings(entry, tables), pa.concat_tables([table.select(columns) for table in tables])


def targets(labels: pa.Table, *, num_classes: int, form: str) -> NDArray[np.float32]:
    """Compute class shares per patch, N x C: one-hot of the class, or the covered shares; NaN where unknown."""
    target_NC = np.full((labels.num_rows, num_classes), np.nan, np.float32)
    if form == "class":
        label_N = labels["label"].fill_null(-1).to_numpy()
        target_NC[label_N >= 0] = np.eye(num_classes, dtype=np.float32)[label_N[label_N >= 0]]
    elif "fractions" in labels.column_names:
        rows = labels["fractions"].to_pylist()
        for i, row in enumerate(rows):
            if row is not None:
                target_NC[i] = row
    else:
        target_NC[:, 1] = labels["target_fraction"].to_numpy(zero_copy_only=False)
        target_NC[:, 0] = 1 - target_NC[:, 1]
    return target_NC


def labels_of(store: Store, entry: BagEntry) -> pa.Table:
    """Read a slide's label table, verified.

    Raises:
        StorageError: If the table is damaged, gone, or another slide's.
    """
    assert entry.labels is not None
    table = read_labels(store, entry.labels, part=entry.labels_part)
    check_slide(table, entry.slide_id, where=store.path(entry.labels))
    return table


def read_labels(store: Store, name: str, *, part: Part | None = None) -> pa.Table:
    """Read a label table, and verify it by the entry in its record where that is known. Raises: StorageError."""
    try:
        data = store.read(name) if part is None else store.read_part(name.rpartition("/")[0], part)
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{store.path(name)} is damaged or gone ({error}); run the job again") from error


def _read_shards(store: Store, entry: BagEntry, shards: Shards) -> list[pa.Table]:
    tables = [_read_shard(store, *file) for file in shards.files]
    for table in tables:
        check_slide(table, entry.slide_id, where=store.path(shards.folder))
    return tables


def _read_shard(store: Store, name: str, part: Part) -> pa.Table:
    """Memory-map an embeddings shard. Raises: StorageError if it is not what its record says."""
    path = store.local_copy(name, part)
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path} is damaged or gone ({error}); delete its folder and run again") from error


def _embeddings(entry: BagEntry, tables: Sequence[pa.Table]) -> EmbeddingSource:
    """Put a slide's embeddings together. Raises: SlideError if one is not finite."""
    parts = [_matrix(table) for table in tables]
    first = 0
    for matrix_NE in parts:
        if (bad := find_not_finite(matrix_NE)) is not None:
            raise SlideError(
                f"{entry.slide_id}: the embedding of patch {first + bad} is not finite; check what made the embeddings"
            )
        first += len(matrix_NE)
    return EmbeddingSource(parts)


def _matrix(table: pa.Table) -> NDArray[np.float16]:
    """Take the embeddings of a shard, N x E, without a copy."""
    (column,) = table["embedding"].chunks  # one record batch a shard; combining even one chunk would copy it
    return np.asarray(column.flatten().to_numpy(zero_copy_only=True)).reshape(len(column), column.type.list_size)
