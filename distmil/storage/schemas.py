"""The tables that stages hand to each other: statuses and Arrow schemas.

x and y are level-0 pixels of a patch's top-left corner; extent_px is its edge in level-0 pixels.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STATUSES = (
    "ok",
    "no_tissue",
    "too_small",
    "too_coarse",
    "no_mpp",
    "missing",
    "unreadable",
    "bad_annotation",
    "failed",
)
# What may pass by itself is tried again by the next job; the other statuses are facts about the file.
TRANSIENT = frozenset({"missing", "failed"})

_PLACE = [
    pa.field("slide_id", pa.string(), nullable=False),
    pa.field("x", pa.int32(), nullable=False),
    pa.field("y", pa.int32(), nullable=False),
    pa.field("extent_px", pa.int32(), nullable=False),
]

SLIDES = pa.schema(
    [
        ("slide_id", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("width_px", pa.int64()),
        ("height_px", pa.int64()),
        ("mpp", pa.float64()),
        ("levels", pa.int32()),
        ("vendor", pa.string()),
        ("reader", pa.string()),
        ("num_patches", pa.int64()),
        ("sha256", pa.string()),
    ]
)

GRID = pa.schema([*_PLACE, pa.field("tissue_fraction", pa.float32(), nullable=False)])

PATCHES = pa.schema(
    [
        *_PLACE,
        pa.field("mpp", pa.float32()),
        pa.field("tissue_fraction", pa.float32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ]
)

COORDS = pa.schema(
    [
        *_PLACE,
        pa.field("mpp", pa.float32()),
        pa.field("tissue_fraction", pa.float32(), nullable=False),
        pa.field("checksum", pa.uint32(), nullable=False),
    ]
)
"""Patches whose pixels stay in the slide: CRC-32 of the RGB pixels of each, row by row."""


def embeddings_schema(dimension: int) -> pa.Schema:
    """Return the schema of an embeddings shard of that width."""
    return pa.schema([*_PLACE, pa.field("embedding", pa.list_(pa.float16(), dimension), nullable=False)])


def labels_schema(num_classes: int) -> pa.Schema:
    """Return the schema of a label table; null means unknown."""
    fields = [*_PLACE, pa.field("label", pa.int8()), pa.field("target_fraction", pa.float32())]
    if num_classes > 2:
        fields.append(pa.field("fractions", pa.list_(pa.float32())))  # a fixed length cannot be null in Parquet
    return pa.schema(fields)


def patch_predictions_schema(classes: Sequence[str]) -> pa.Schema:
    """Return the schema of a slide's patch predictions, with a column per class where there are more than two."""
    names = ["attention", "probability", "topk_probability", "fused"]
    extra = [f"probability_{name}" for name in classes] if len(classes) > 2 else []
    return pa.schema(
        [*_PLACE, *((name, pa.float32()) for name in names), ("predicted", pa.string())]
        + [(name, pa.float32()) for name in extra]
    )


def slide_predictions_schema(classes: Sequence[str]) -> pa.Schema:
    """Return the schema of the slide predictions, with a column per class where there are more than two."""
    extra = [f"probability_{name}" for name in classes] if len(classes) > 2 else []
    return pa.schema(
        [("slide_id", pa.string())]
        + [(name, pa.float64()) for name in ("probability", "bag", "max", "topk_mean", "regions")]
        + [("predicted", pa.string()), ("label", pa.string()), ("num_patches", pa.int64())]
        + [(name, pa.float64()) for name in extra]
    )


def to_ipc(table: pa.Table) -> pa.Buffer:
    """Encode a table as an Arrow IPC file of one batch, uncompressed, so that it can be memory-mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def to_parquet(table: pa.Table, *, max_bytes: int | None = None, **options: Any) -> pa.Buffer:
    """Encode a table as Parquet, compressed by zstd, every page with its checksum.

    Args:
        table: The table.
        max_bytes: Memory to allocate at once; without it a buffer grows, and large tables are copied again and again.
        options: Further options of ``pyarrow.parquet.write_table``.
    """
    buffer = None if max_bytes is None else pa.allocate_buffer(max_bytes)
    sink = pa.BufferOutputStream() if buffer is None else pa.FixedSizeBufferWriter(buffer)
    pq.write_table(table, sink, **{"compression": "zstd", "write_page_checksum": True, **options})
    return sink.getvalue() if buffer is None else buffer.slice(0, sink.tell())
