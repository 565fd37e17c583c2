"""How good written predictions are, where labels are known."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distmil.bags.bag import BagEntry, labels_of
from distmil.errors import StorageError
from distmil.evaluation.calibration import calibration_of
from distmil.evaluation.groups import group_rows
from distmil.evaluation.intervals import DRAWS, Bootstrap, Interval, intervals_of
from distmil.evaluation.lesions import Lesions
from distmil.evaluation.localisation import Localised, localisation_of, localise, overlap_of
from distmil.evaluation.metrics import PATCH_SCORES, LabelledScores, at_threshold, summarise
from distmil.inference.scoring import READ_OUTS
from distmil.inference.tables import FROC, GROUPS, RELIABILITY, Row, read_patch_table
from distmil.inference.thresholds import DEFAULT_THRESHOLD, calibrated
from distmil.storage.records import Part
from distmil.storage.store import Store

LesionsOf = Callable[[str], Lesions | None]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of some slides, how sure they are, and of how many cases they are."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """95 % intervals by patient."""
    counts: dict[str, int] = field(default_factory=dict)
    """slides, positive_slides, patients, patches (with known labels), positive_patches; those of ``Localisation``."""
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of tables by the name of their file, such as ``froc.csv``."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """By what predictions are judged: the read-out that counts, and what the bundle says of it."""

    classes: Sequence[str]
    slide_score: str
    threshold: float
    """Of that read-out."""
    temperature: float | None = None
    """Of that read-out; None where the bundle has none."""
    patch_threshold: float = DEFAULT_THRESHOLD
    draws: int = DRAWS
    """Of the bootstrap."""


def evaluate_predictions(
    store: Store,
    run: str,
    rows: Mapping[str, Row],
    entries: Sequence[BagEntry],
    rules: Rules,
    *,
    tables: Mapping[str, Part],
    patients: Mapping[str, str],
    sites: Mapping[str, str | None],
    lesions_of: LesionsOf,
) -> Evaluation:
    """Evaluate written predictions against the entries' labels; pseudo-labelled slides are left out.

    Args:
        store: Where predictions and labels are.
        run: The prediction run.
        rows: Slide predictions by slide id.
        entries: The slides with their labels and label tables.
        rules: By what they are judged.
        tables: Committed patch predictions by slide id.
        patients: Patients by slide id.
        sites: Sites by slide id, None where unknown.
        lesions_of: From a slide id to all lesions of the slide, None where they are not all known.
    """
    judged = [entry for entry in entries if entry.slide_id in rows and entry.label is not None and not entry.is_pseudo]
    if not judged:
        return Evaluation()
    scores, localised = [], dict[str, Localised]()
    for entry in judged:
        read = _read(store, run, entry, tables[entry.slide_id])
        scores.append(_labelled(rows[entry.slide_id], entry, read, classes=rules.classes))
        if read is not None and (lesions := lesions_of(entry.slide_id)) is not None:
            localised[entry.slide_id] = localise(read.grid, read.scores, read.label_N, lesions)
    patient_S = [patients[entry.slide_id] for entry in judged]
    where = localisation_of(list(localised.values()), [patients[slide_id] for slide_id in localised], draws=rules.draws)
    found = _measured(scores, patient_S, rules)
    return Evaluation(
        metrics=found.metrics | where.metrics,
        intervals=found.intervals | where.intervals,
        counts=found.counts | where.counts,
        details=found.details
        | ({FROC: where.rows} if where.rows else {})
        | {GROUPS: _groups(scores, patient_S, [sites[entry.slide_id] for entry in judged], rules)},
    )


def _groups(
    scores: Sequence[LabelledScores], patient_S: Sequence[str], site_S: Sequence[str | None], rules: Rules
) -> list[dict[str, Any]]:
    return group_rows(
        scores, patient_S, site_S, classes=rules.classes, slide_score=rules.slide_score, threshold=rules.threshold,
        draws=rules.draws,
    )  # fmt: skip


def _measured(scores: Sequence[LabelledScores], patient_S: Sequence[str], rules: Rules) -> Evaluation:
    """Measure slides and their patches one by one: what needs no lesions."""
    of_read_out: Any = {"slide_score": rules.slide_score, "threshold": rules.threshold}
    overlap, overlap_intervals = overlap_of(scores, patient_S, threshold=rules.patch_threshold, draws=rules.draws)
    metrics = summarise(scores, **of_read_out) | at_threshold(scores, **of_read_out) | overlap
    intervals = intervals_of(scores, patient_S, **of_read_out, draws=rules.draws) | overlap_intervals
    bootstrap = Bootstrap.of(patient_S, draws=rules.draws)
    probability = [row.read_outs[READ_OUTS.index(rules.slide_score)] for row in scores]
    versions = {"": probability}
    if rules.temperature is not None:
        versions["_calibrated"] = [calibrated(value, rules.temperature) for value in probability]
    bins = []
    for name, values in versions.items():
        made = calibration_of([row.label > 0 for row in scores], values, bootstrap)
        metrics |= {f"slide_ece{name}": made.error, f"slide_brier{name}": made.brier}
        intervals |= {f"slide_ece{name}": made.error_interval, f"slide_brier{name}": made.brier_interval}
        bins += [{"probability": name.removeprefix("_") or "as it is", **row} for row in made.rows]
    counts = {
        "slides": len(scores),
        "positive_slides": sum(row.label > 0 for row in scores),
        "patients": len(set(patient_S)),
        "patches": sum(len(row.is_target_N) for row in scores),
        "positive_patches": sum(int(row.is_target_N.sum()) for row in scores),
    }
    return Evaluation(metrics, intervals, counts, {RELIABILITY: bins})


class _Read(NamedTuple):
    """A slide's patches as they were predicted and labelled."""

    grid: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
    scores: tuple[NDArray[np.float32], ...]
    label_N: NDArray[np.int8]


def _read(store: Store, run: str, entry: BagEntry, table: Part) -> _Read | None:
    """Read a slide's patches, None where it has no labels. Raises: StorageError."""
    if entry.labels is None:
        return None
    predicted = read_patch_table(store, run, table, ("x", "y", "extent_px", *PATCH_SCORES))
    labels = labels_of(store, entry)
    if not (labels["x"].equals(predicted["x"]) and labels["y"].equals(predicted["y"])):
        raise StorageError(f"{entry.slide_id}: predictions and labels lie on different grids; predict it again")
    return _Read(
        grid=tuple(predicted[name].to_numpy() for name in ("x", "y", "extent_px")),
        scores=tuple(predicted[name].to_numpy() for name in PATCH_SCORES),
        label_N=labels["label"].fill_null(-1).to_numpy(),
    )


def _labelled(row: Row, entry: BagEntry, read: _Read | None, *, classes: Sequence[str]) -> LabelledScores:
    assert entry.label is not None
    is_multi = len(classes) > 2
    bag_C = [row[f"probability_{name}"] for name in classes] if is_multi else [1 - row["bag"], row["bag"]]
    is_target, scores = np.empty(0, bool), tuple(np.empty(0, np.float32) for _ in PATCH_SCORES)
    if read is not None:
        is_known = read.label_N >= 0
        is_target, scores = read.label_N[is_known] > 0, tuple(score_N[is_known] for score_N in read.scores)
    return LabelledScores(
        label=entry.label,
        bag_C=np.array(bag_C),
        read_outs=tuple(math.nan if row[name] is None else row[name] for name in READ_OUTS),
        is_target_N=is_target,
        scores_N=scores,
    )
