"""Embeddings and labels to bags: what each training step sees, the same for any number of workers.

A bag's embeddings are memory-mapped and only what a step needs is copied.
An epoch's steps are drawn from a seed for the whole
group; every worker draws the same plan and takes its share of the bags in it.

N patches of a bag, E embedding, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from numpy.typing import NDArray

from distmil.config import BagsConfig
from distmil.errors import StorageError
from distmil.shards import decode_image, read_patches
from distmil.storage import Part, Store

Indices = NDArray[np.int64]
MIXED = -1


class PatchSource(Protocol):
    """Where a bag's patches come from: stored embeddings, or images for a trainable encoder."""

    def __len__(self) -> int: ...

    def take(self, indices: Indices | slice) -> NDArray[Any]:
        """Return the chosen patches in the given order: N x E embeddings, or N x H x W x 3 pixels."""
        ...


@dataclass(frozen=True)
class EmbeddingSource:
    """Embedding shards of one slide, memory-mapped."""

    parts: Sequence[NDArray[np.float16]]

    @cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Indices | slice) -> NDArray[np.float16]:
        """Return embeddings, N x E; a slice of one shard is not copied."""
        if isinstance(indices, slice):
            start, stop, _ = indices.indices(len(self))
            pieces = [
                part[max(0, start - begin) : max(0, stop - begin)]
                for part, begin in zip(self.parts, self._starts, strict=False)
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        chosen = np.empty((len(indices), self.parts[0].shape[1]), np.float16)
        part_of = np.searchsorted(self._starts, indices, side="right") - 1
        for part in np.unique(part_of):
            where = part_of == part
            chosen[where] = self.parts[part][indices[where] - self._starts[part]]
        return chosen


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
        """Return RGB patches, N x H x W x 3."""
        chosen = np.arange(*indices.indices(len(self))) if isinstance(indices, slice) else indices
        part_of = np.searchsorted(self._starts, chosen, side="right") - 1
        images: dict[int, NDArray[np.uint8]] = {}
        for part in np.unique(part_of).tolist():
            column = read_patches(self.store, f"{self.folder}/{self.parts[part].name}", columns=["image"])["image"]
            for i in np.flatnonzero(part_of == part).tolist():
                images[i] = decode_image(column[int(chosen[i] - self._starts[part])].as_py())
        return np.stack([images[i] for i in range(len(chosen))])


@dataclass(frozen=True)
class BagEntry:
    """A slide as training and prediction need it, JSON-ready: where its shards and labels are.

    The shards hold embeddings, or patches where the encoder is trained too.
    """

    slide_id: str
    label: int | None
    split: str | None
    is_pseudo: bool
    folder: str
    parts: Sequence[Part]
    labels: str | None

    @property
    def num_patches(self) -> int:
        """Return the number of patches."""
        return sum(part.rows for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BagEntry":
        """Rebuild an entry."""
        return cls(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})


@dataclass(frozen=True)
class Bag:
    """One slide: its label, where its patches come from, and what is known of each.

    ``label_N`` is the class of each patch, -1 where unknown; ``target_NC`` what training takes it for: class shares, a
    row of NaN where nothing is known.
    """

    slide_id: str
    label: int | None
    source: PatchSource
    label_N: NDArray[np.int8]
    target_NC: NDArray[np.float32]
    is_pseudo: bool = False
    split: str | None = None

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def is_known_N(self) -> NDArray[np.bool_]:
        """Return which patches have a label."""
        return ~np.isnan(self.target_NC[:, 0])

    @cached_property
    def positive_N(self) -> NDArray[np.float32]:
        """Return the share of target in each patch, NaN where unknown."""
        return 1 - self.target_NC[:, 0]


def open_bag(store: Store, entry: BagEntry, *, num_classes: int, form: str) -> Bag:
    """Open a slide's bag.

    Args:
        store: Where the entry's files are.
        entry: The slide.
        num_classes: C.
        form: ``class`` or ``fraction``: what the targets are made of.

    Raises:
        StorageError: If a shard is damaged, or labels and shards do not lie on the same grid.
    """
    source, places = open_source(store, entry)
    label_N = np.full(entry.num_patches, -1, np.int8)
    target_NC = np.full((entry.num_patches, num_classes), np.nan, np.float32)
    if entry.labels is not None:
        labels = read_labels(store, entry.labels)
        if any(not np.array_equal(places[name].to_numpy(), labels[name].to_numpy()) for name in ("x", "y")):
            raise StorageError(f"{entry.slide_id}: labels and shards lie on different grids; run the job again")
        label_N = labels["label"].fill_null(-1).to_numpy()
        target_NC = targets(labels, num_classes=num_classes, form=form)
    return Bag(entry.slide_id, entry.label, source, label_N, target_NC, entry.is_pseudo, entry.split)


def open_source(store: Store, entry: BagEntry) -> tuple[PatchSource, pa.Table]:
    """Return where a slide's patches come from, and their places: slide_id, x, y, extent_px. Raises: StorageError."""
    columns = ["slide_id", "x", "y", "extent_px"]
    if entry.parts[0].name.endswith(".parquet"):
        tables = [read_patches(store, f"{entry.folder}/{part.name}", columns=columns) for part in entry.parts]
        return ImageSource(store, entry.folder, entry.parts), pa.concat_tables(tables)
    tables = [_read_shard(store, f"{entry.folder}/{part.name}", part) for part in entry.parts]
    places = pa.concat_tables([table.select(columns) for table in tables])
    return EmbeddingSource([_matrix(table) for table in tables]), places


def targets(labels: pa.Table, *, num_classes: int, form: str) -> NDArray[np.float32]:
    """Return class shares per patch, N x C: one-hot of the class, or the covered shares; NaN where unknown."""
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


def read_labels(store: Store, name: str) -> pa.Table:
    """Read a label table. Raises: StorageError."""
    try:
        return pq.read_table(pa.BufferReader(store.read(name)), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{store.path(name)} is damaged or gone ({error}); run the job again") from error


def _read_shard(store: Store, name: str, part: Part) -> pa.Table:
    """Memory-map an embeddings shard. Raises: StorageError if it is not what its record says."""
    path = store.local_copy(name, part.sha256)
    try:
        with pa.memory_map(str(path)) as source:
            if source.size() != part.size_bytes:
                raise StorageError(
                    f"{path} has {source.size()} bytes, its record says {part.size_bytes}; run embed again"
                )
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path} is damaged or gone ({error}); delete its folder and run again") from error


def _matrix(table: pa.Table) -> NDArray[np.float16]:
    """Return the embeddings of a shard, N x E, without a copy."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=True)).reshape(len(column), column.type.list_size)


# --- drawing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of the whole group: slide bags by index, and the mixed bag as (bag, patch) pairs."""

    bags: Sequence[int]
    samples: Mapping[int, Indices]
    """Patches of the bags that are too large for a step; the other bags are whole."""
    mixed_bag: Indices
    mixed_patch: Indices

    def share(self, rank: int, size: int, lengths: Sequence[int]) -> list[int]:
        """Return what one of ``size`` workers takes: bag indices, and MIXED for the mixed bag; the load is even."""
        load = {i: min(lengths[i], len(self.samples.get(i, range(lengths[i])))) for i in self.bags}
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

    def __init__(self, bags: Sequence[Bag], config: BagsConfig, *, num_classes: int, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._num_classes = num_classes
        self._lengths = [len(bag) for bag in bags]
        self._by_class = [_pool_of(_of_class(bags, c)) for c in range(num_classes)]
        labels = {bag.label or 0 for bag in bags}
        self._negatives = [_pool_of(_of_class(bags, 0, slide_label=label)) for label in sorted(labels)]
        self._labelled = _pool_of({i: np.flatnonzero(bag.is_known_N) for i, bag in enumerate(bags)})

    @property
    def num_positive(self) -> int:
        """Return how many patches are known to hold target."""
        return sum(pool.size for pool in self._by_class[1:])

    @property
    def num_negative(self) -> int:
        """Return how many patches are known to hold none."""
        return self._by_class[0].size

    def steps(self, epoch: int, *, with_mixed: bool) -> Iterator[Step]:
        """Yield the steps of an epoch: every bag once, in an order of its own, with a mixed bag each if wanted."""
        generator = np.random.default_rng([self._seed, epoch])
        budget = self._config.patches_per_step
        group: list[int] = []
        filled = 0
        for i in generator.permutation(len(self._lengths)).tolist():
            size = min(self._lengths[i], budget)
            if group and (len(group) == self._config.slides_per_step or filled + size > budget):
                yield self._step(group, generator, with_mixed=with_mixed)
                group, filled = [], 0
            group.append(i)
            filled += size
        yield self._step(group, generator, with_mixed=with_mixed)

    def _step(self, group: list[int], generator: Generator, *, with_mixed: bool) -> Step:
        budget = self._config.patches_per_step
        samples = {
            i: np.sort(generator.choice(self._lengths[i], size=budget, replace=False))
            for i in group
            if self._lengths[i] > budget
        }
        nothing = np.empty(0, np.int64)
        mixed = self._mixed(group, generator) if with_mixed else (nothing, nothing)
        return Step(group, samples, *mixed)

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
