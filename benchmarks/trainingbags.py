"""Embedding bags for the training benchmarks: made once, on disk, as `embed` writes them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from distmil.bags.bag import Bag, BagEntry, open_source
from distmil.storage.schemas import embeddings_schema, to_ipc
from distmil.storage.store import Store

EMBEDDING = 2048
POOL = 32_768
SHARD = 1_000


def make_bags(root: Path, sizes: Sequence[int]) -> list[Bag]:
    """Return bags of these sizes, writing those that are not there. Every second slide is positive and annotated.

    Contents are windows of one pool of normal draws: the values do not change the speed.
    """
    store = Store(str(root))
    pool = None
    bags = []
    for i, size in enumerate(sizes):
        listing = f"bags/{i:04d}-{size}/entry.json"
        if not store.exists(listing):
            pool = _make_pool() if pool is None else pool
            store.write_json(listing, _write_bag(store, f"bags/{i:04d}-{size}", i, size, pool))
        entry = BagEntry.from_json(json.loads(store.read(listing)))
        source, _ = open_source(store, entry)
        bags.append(_label(entry, source, size))
    return bags


def _make_pool() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.standard_normal((POOL, EMBEDDING), dtype=np.float32).astype(np.float16)


def _write_bag(store: Store, folder: str, index: int, size: int, pool: np.ndarray) -> dict:
    schema, parts = embeddings_schema(EMBEDDING), []
    for number, start in enumerate(range(0, size, SHARD)):
        rows = min(SHARD, size - start)
        first = (index * 7919 + start) % (POOL - min(rows, POOL - 1))
        window = np.resize(pool[first : first + rows], (rows, EMBEDDING))
        place = np.arange(start, start + rows, dtype=np.int32)
        columns = [
            pa.array([f"s{index}"] * rows), pa.array(place), pa.array(place), pa.array(np.full(rows, 256, np.int32)),
            pa.FixedSizeListArray.from_arrays(pa.array(window.ravel(), pa.float16()), EMBEDDING),
        ]  # fmt: skip
        table = pa.Table.from_arrays(columns, schema=schema)
        parts.append(store.write_part(folder, f"part-{number:05d}.arrow", to_ipc(table), rows=rows))
    return BagEntry(f"s{index}", index % 2, "train", False, folder, tuple(parts), None).to_json()


def _label(entry: BagEntry, source: object, size: int) -> Bag:
    label_N = np.zeros(size, np.int8)
    label_N[: max(1, size // 20)] = entry.label or 0
    target_NC = np.eye(2, dtype=np.float32)[label_N]
    return Bag(entry.slide_id, entry.label, source, label_N, target_NC)
