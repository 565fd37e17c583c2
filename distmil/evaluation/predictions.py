"""How good written predictions are, where labels are known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from distmil.bags.bag import BagEntry, labels_of
from distmil.errors import StorageError
from distmil.evaluation.intervals import DRAWS, Interval, intervals_of
from distmil.evaluation.metrics import PATCH_SCORES, LabelledScores, at_threshold, summarise
from distmil.inference.scoring import READ_OUTS
from distmil.inference.tables import Row, read_patch_table
from distmil.storage.records import Part
from distmil.storage.store import Store


@dataclass(frozen=True)
class Evaluation:
    """Metrics of some slides, how sure they are, and of how many cases they are."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """95 % intervals by patient."""
    counts: dict[str, int] = field(default_factory=dict)
    """slides, positive_slides, patients, patches (with known labels), positive_patches."""


def evaluate_predictions(
    store: Store,
    run: str,
    rows: Mapping[str, Row],
    entries: Sequence[BagEntry],
    *,
    tables: Mapping[str, Part],
    classes: Sequence[str],
    slide_score: str,
    threshold: float,
    patients: Mapping[str, str],
    draws: int = DRAWS,
) -> Evaluation:
    """Evaluate written predictions against the entries' labels; pseudo-labelled slides are left out.

    Args:
        store: Where predictions and labels are.
        run: The prediction run.
        rows: Slide predictions by slide id.
        entries: The slides with their labels and label tables.
        tables: Committed patch predictions by slide id.
        classes: Class names.
        slide_score: The read-out that counts.
        threshold: The bundle's threshold of that read-out.
        patients: Patients by slide id.
        draws: Draws of the bootstrap.
    """
    labelled = {
        entry.slide_id: _labelled(
            store, run, rows[entry.slide_id], entry, table=tables[entry.slide_id], classes=classes
        )
        for entry in entries
        if entry.slide_id in rows and entry.label is not None and not entry.is_pseudo
    }
    if not labelled:
        return Evaluation()
    scores = list(labelled.values())
    patient_S = [patients[slide_id] for slide_id in labelled]
    return Evaluation(
        metrics=summarise(scores, slide_score=slide_score, threshold=threshold)
        | at_threshold(scores, slide_score=slide_score, threshold=threshold),
        intervals=intervals_of(scores, patient_S, slide_score=slide_score, threshold=threshold, draws=draws),
        counts={
            "slides": len(scores),
            "positive_slides": sum(row.label > 0 for row in scores),
            "patients": len(set(patient_S)),
            "patches": sum(len(row.is_target_N) for row in scores),
            "positive_patches": sum(int(row.is_target_N.sum()) for row in scores),
        },
    )


def _labelled(
    store: Store, run: str, row: Row, entry: BagEntry, *, table: Part, classes: Sequence[str]
) -> LabelledScores:
    assert entry.label is not None
    is_multi = len(classes) > 2
    bag_C = [row[f"probability_{name}"] for name in classes] if is_multi else [1 - row["bag"], row["bag"]]
    is_target, scores = np.empty(0, bool), tuple(np.empty(0, np.float32) for _ in PATCH_SCORES)
    if entry.labels is not None:
        predicted = read_patch_table(store, run, table, ("x", "y", *PATCH_SCORES))
        labels = labels_of(store, entry)
        if not (labels["x"].equals(predicted["x"]) and labels["y"].equals(predicted["y"])):
            raise StorageError(f"{entry.slide_id}: predictions and labels lie on different grids; predict it again")
        label_N = labels["label"].fill_null(-1).to_numpy()
        is_target = label_N[label_N >= 0] > 0
        scores = tuple(predicted[name].to_numpy()[label_N >= 0] for name in PATCH_SCORES)
    return LabelledScores(
        label=entry.label,
        bag_C=np.array(bag_C),
        read_outs=tuple(math.nan if row[name] is None else row[name] for name in READ_OUTS),
        is_target_N=is_target,
        scores_N=scores,
    )
