"""A bundle's answers as tables: patch scores and slide scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmil.scoring import READ_OUTS, BagScores
from distmil.storage import Store
from distmil.tables import patch_predictions_schema, slide_predictions_schema

Row = dict[str, Any]


def predictions_folder(run: str) -> str:
    """Return the folder of a prediction run."""
    return f"predictions/{run}"


def patch_table(scores: BagScores, places: pa.Table, *, classes: Sequence[str], threshold: float) -> pa.Table:
    """Return a slide's patch predictions.

    A patch is predicted abnormal where its probability reaches the threshold; its class is then the likeliest one that
    is not normal.

    Args:
        scores: The network's answers.
        places: slide_id, x, y, extent_px of the patches, in the same order.
        classes: Class names.
        threshold: The bundle's patch threshold.
    """
    schema = patch_predictions_schema(classes)
    abnormal = np.array(classes[1:])[scores.class_probability_NC[:, 1:].argmax(axis=1)]
    predicted = np.where(scores.probability_N >= threshold, abnormal, classes[0])
    columns = [places[name] for name in ("slide_id", "x", "y", "extent_px")]
    columns += [
        pa.array(values, pa.float32())
        for values in (scores.attention_N, scores.probability_N, scores.topk_probability_N, scores.fused_N)
    ]
    columns.append(pa.array(predicted, pa.string()))
    if len(classes) > 2:
        columns += [pa.array(column, pa.float32()) for column in scores.class_probability_NC.T]
    return pa.table(columns, schema=schema)


def slide_row(
    scores: BagScores,
    *,
    slide_id: str,
    label: int | None,
    classes: Sequence[str],
    slide_score: str,
    threshold: float,
) -> Row:
    """Return a slide's line of the slide predictions; class columns are those of the ``bag`` read-out."""
    probability = getattr(scores, slide_score)
    abnormal = classes[1 + int(scores.bag_C[1:].argmax())]
    row: Row = {
        "slide_id": slide_id,
        "probability": probability,
        **{name: getattr(scores, name) for name in READ_OUTS},
        "predicted": abnormal if probability >= threshold else classes[0],
        "label": None if label is None else classes[label],
        "num_patches": len(scores.fused_N),
    }
    if len(classes) > 2:
        row |= {f"probability_{name}": float(scores.bag_C[i]) for i, name in enumerate(classes)}
    return row


def write_slide_table(store: Store, run: str, rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Write the slide predictions and return the file's name."""
    name = f"{predictions_folder(run)}/slides.parquet"
    write_parquet(store, name, pa.Table.from_pylist(list(rows), schema=slide_predictions_schema(classes)))
    return name


def write_parquet(store: Store, name: str, table: pa.Table) -> None:
    """Write a table of predictions."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    store.write(name, sink.getvalue())
