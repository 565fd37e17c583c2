"""A bundle's answers as tables: patch scores, slide scores, and how good they are where labels are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmil.bags import BagEntry, read_labels
from distmil.errors import StorageError
from distmil.metrics import PATCH_SCORES, Judged, summarise
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


def judge_predictions(
    store: Store,
    run: str,
    rows: Mapping[str, Row],
    entries: Sequence[BagEntry],
    *,
    classes: Sequence[str],
    slide_score: str,
) -> dict[str, float | None]:
    """Return the metrics of written predictions against the entries' labels; pseudo-labelled slides are left out.

    Args:
        store: Where predictions and labels are.
        run: The prediction run.
        rows: Slide predictions by slide id.
        entries: The slides with their labels and label tables.
        classes: Class names.
        slide_score: The read-out that counts.
    """
    judged = [
        _judged(store, run, rows[entry.slide_id], entry, classes)
        for entry in entries
        if entry.slide_id in rows and entry.label is not None and not entry.is_pseudo
    ]
    return summarise(judged, slide_score=slide_score)


def _judged(store: Store, run: str, row: Row, entry: BagEntry, classes: Sequence[str]) -> Judged:
    assert entry.label is not None
    is_multi = len(classes) > 2
    bag_C = [row[f"probability_{name}"] for name in classes] if is_multi else [1 - row["bag"], row["bag"]]
    is_target, scores = np.empty(0, bool), tuple(np.empty(0, np.float32) for _ in PATCH_SCORES)
    if entry.labels is not None:
        name = f"{predictions_folder(run)}/patches/{entry.slide_id}.parquet"
        predicted = pq.read_table(pa.BufferReader(store.read(name)), columns=["x", "y", *PATCH_SCORES])
        labels = read_labels(store, entry.labels)
        if not (labels["x"].equals(predicted["x"]) and labels["y"].equals(predicted["y"])):
            raise StorageError(f"{entry.slide_id}: predictions and labels lie on different grids; predict it again")
        label_N = labels["label"].fill_null(-1).to_numpy()
        is_target = label_N[label_N >= 0] > 0
        scores = tuple(predicted[name].to_numpy()[label_N >= 0] for name in PATCH_SCORES)
    return Judged(
        label=entry.label,
        bag_C=np.array(bag_C),
        read_outs=tuple(row[name] for name in READ_OUTS),
        is_target_N=is_target,
        scores_N=scores,
    )
