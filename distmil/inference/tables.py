"""A bundle's answers as tables: patch scores and slide scores."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmil.inference.scoring import READ_OUTS, BagScores
from distmil.inference.thresholds import calibrated
from distmil.storage.records import Part
from distmil.storage.schemas import patch_predictions_schema, slide_predictions_schema, to_parquet
from distmil.storage.store import Committed, Store

METRICS, INTERVALS, RESULTS = "metrics.json", "intervals.json", "slides.csv"
"""What is made of the slide predictions, beside them."""
FROC, RELIABILITY, GROUPS = "froc.csv", "reliability.csv", "groups.csv"
"""Tables of an evaluation that are too long for a terminal: the lesion FROC's points, the bins of probabilities, and
metrics by site and class."""
REPORT = "report.html"
"""The page of a training or an evaluation. It shows maps too, and goes before one of them is made again."""

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
    # in float64: rounded to float32, a threshold between two neighbours would be one of them
    predicted = np.where(scores.probability_N.astype(np.float64) >= threshold, abnormal, classes[0])
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
    temperature: float | None = None,
) -> Row:
    """Make a slide's row of the slide predictions; class columns are those of the ``bag`` read-out.

    Args:
        scores: The network's answers.
        slide_id: Of the slide.
        label: Its class, None where unknown.
        classes: Class names.
        slide_score: The read-out that becomes the probability.
        threshold: From which value of it the slide is abnormal.
        temperature: Calibrates the probability; None leaves it as it is.
    """
    value = getattr(scores, slide_score)
    abnormal = classes[1 + int(scores.bag_C[1:].argmax())]
    row: Row = {
        "slide_id": slide_id,
        "probability": value if temperature is None else calibrated(value, temperature),
        **{name: _known(getattr(scores, name)) for name in READ_OUTS},
        "predicted": abnormal if value >= threshold else classes[0],
        "label": None if label is None else classes[label],
        "num_patches": len(scores.fused_N),
    }
    if len(classes) > 2:
        row |= {f"probability_{name}": float(scores.bag_C[i]) for i, name in enumerate(classes)}
    return row


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_slide_table(store: Store, run: str, rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Commit the slide predictions and return the file's name.

    What was made of another table, such as its metrics, is deleted before the new table is written.
    """
    folder = predictions_folder(run)
    committed = Committed(store, folder, run, "slides.json")
    earlier = committed.read()
    data = to_parquet(pa.Table.from_pylist(list(rows), schema=slide_predictions_schema(classes)))
    part = Part.of("slides.parquet", data, rows=len(rows))
    if earlier is None or tuple(earlier.parts) != (part,):
        delete_derived(store, run)
    store.write(f"{folder}/{part.name}", data)
    committed.commit({}, parts=[part])
    return f"{folder}/{part.name}"


def delete_derived(store: Store, run: str) -> None:
    """Delete what was made of the slide predictions."""
    for name in (REPORT, METRICS, INTERVALS, RESULTS, FROC, RELIABILITY, GROUPS):
        store.delete(f"{predictions_folder(run)}/{name}")


def read_patch_table(store: Store, run: str, part: Part, columns: Sequence[str]) -> pa.Table:
    """Read columns of a slide's patch predictions, verified. Raises: StorageError if they are damaged or gone."""
    return pq.read_table(pa.BufferReader(store.read_part(predictions_folder(run), part)), columns=list(columns))
