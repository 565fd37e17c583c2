"""Metrics and slides in words and rows: the same on the terminal and in a notebook."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distmil.evaluation.metrics import PATCH_SCORES, SPECIFICITIES, sensitivity_name
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import WRONG, SlideResult
from distmil.inference.scoring import READ_OUTS

NOT_DEFINED = "not defined"
_PATCH_COLUMNS = ("patches", "AUC", "interval", "average precision", "interval")
_WHERE_COLUMNS = ("where", "lesion FROC", "interval", "pointing game", "interval")

_METRICS = {
    "slide_auc": "AUC",
    "slide_ap": "average precision",
    "slide_accuracy": "accuracy",
    "slide_class_accuracy": "accuracy by class",
    "slide_sensitivity": "sensitivity",
    "slide_specificity": "specificity",
    "slide_balanced_accuracy": "balanced accuracy",
    **{sensitivity_name(share): f"sensitivity at specificity {share:g}" for share in SPECIFICITIES},
    "slide_ece": "calibration error",
    "slide_ece_calibrated": "calibration error, calibrated",
    "slide_brier": "Brier score",
    "slide_brier_calibrated": "Brier score, calibrated",
    "slide_loss": "cross entropy (bag)",
}

_OVERLAP = {"Dice": "patch_dice", "IoU": "patch_iou"}

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """What is shown of results: a title, and rows under columns; without rows the title says all."""

    title: str
    columns: tuple[str, ...] = ()
    rows: Rows = field(default_factory=list)


def metric_tables(split: str, evaluation: Evaluation, noun: str) -> list[Table]:
    """Word the metrics of a split: slides, then patches by score; the noun is slide or image."""
    title = _metrics_title(split, evaluation, noun)
    if not evaluation.counts:
        return [Table(title)]
    tables = [Table(title, (f"{noun}s", "value", "interval"), _metric_rows(evaluation))]
    if patches := _patches_title(evaluation):
        tables.append(Table(patches, _PATCH_COLUMNS, _patch_rows(evaluation)))
    if "lesions" in evaluation.counts:
        tables.append(Table(_where_title(evaluation, noun), _WHERE_COLUMNS, _where_rows(evaluation)))
    return tables


def slide_table(results: Sequence[SlideResult], noun: str) -> Table:
    """Word the slides to look at: wrong and doubtful ones, and those that no label is known of."""
    columns = (noun, "split", "label", "predicted", "probability", "doubt")
    return Table(_results_title(results, noun), columns, _slide_rows(_to_look_at(results)))


def _metrics_title(split: str, evaluation: Evaluation, noun: str) -> str:
    """Word what the metrics are of."""
    counts = evaluation.counts
    if not counts:
        return f"no metrics on {split}: none of its {noun}s has a label and a prediction"
    return (
        f"metrics on {split}: {counts['slides']} {noun}s of {counts['patients']} patients, {counts['positive_slides']} "
        "of them abnormal; 95 % intervals by patient"
    )


def _metric_rows(evaluation: Evaluation) -> Rows:
    """List the metrics of slides with their intervals."""
    rows: Rows = [(_METRICS[name], *_value(evaluation, name)) for name in _METRICS if name in evaluation.metrics]
    return rows + [(f"AUC of {name}", *_value(evaluation, f"slide_auc_{name}")) for name in READ_OUTS]


def _patches_title(evaluation: Evaluation) -> str:
    """Word how many patches the metrics of patches are of; "" where there are none."""
    counts = evaluation.counts
    if not counts.get("patches"):
        return ""
    text = f"{counts['patches']:,} patches with known labels, {counts['positive_patches']:,} of them abnormal"
    defined = [(name, key) for name, key in _OVERLAP.items() if evaluation.metrics.get(key) is not None]
    shown = [(name, _value(evaluation, key)) for name, key in defined]
    found = [f"{name} {value}" + f" ({interval})" * bool(interval) for name, (value, interval) in shown]
    return text + (f"; at the patch threshold {', '.join(found)}" if found else "")


def _patch_rows(evaluation: Evaluation) -> Rows:
    """List the metrics of patches by score with their intervals, under ``_PATCH_COLUMNS``."""
    return [
        (name, *_value(evaluation, f"patch_auc_{name}"), *_value(evaluation, f"patch_ap_{name}"))
        for name in PATCH_SCORES
    ]


def _where_title(evaluation: Evaluation, noun: str) -> str:
    """Word what the metrics of places are of."""
    counts = evaluation.counts
    isolated = f", and {counts['isolated_cells']} of isolated cells that do not count" * bool(counts["isolated_cells"])
    return (
        f"{counts['lesions']} lesions{isolated} on {counts['lesion_slides']} {noun}s whose targets are all known; the "
        f"best patch of {counts['pointing_slides']}"
    )


def _where_rows(evaluation: Evaluation) -> Rows:
    """List how well each score shows where targets are, under ``_WHERE_COLUMNS``."""
    return [
        (name, *_value(evaluation, f"lesion_froc_{name}"), *_value(evaluation, f"pointing_{name}"))
        for name in PATCH_SCORES
    ]


def _value(evaluation: Evaluation, name: str) -> tuple[str, str]:
    """Word a metric and its interval, two digits each."""
    value, interval = evaluation.metrics.get(name), evaluation.intervals.get(name)
    if value is None:
        return NOT_DEFINED, ""
    if interval is None:
        return f"{value:.2f}", ""
    low, high = interval
    return f"{value:.2f}", f"{low:.2f} to {high:.2f}"


def _to_look_at(results: Sequence[SlideResult]) -> list[SlideResult]:
    """Choose the slides to look at, in their order: wrong and doubtful ones, and those that no label is known of."""
    scored = [result for result in results if result.probability is not None]
    return [result for result in scored if result.verdict == WRONG or result.reason or not result.verdict]


def counts_to_look_at(results: Sequence[SlideResult]) -> dict[str, int]:
    """Count the slides that are predicted wrong, and the others that are in doubt."""
    scored = [result for result in results if result.probability is not None]
    wrong = sum(result.verdict == WRONG for result in scored)
    doubtful = sum(bool(result.reason) and result.verdict != WRONG for result in scored)
    return {"wrong": wrong, "in_doubt": doubtful}


def _results_title(results: Sequence[SlideResult], noun: str) -> str:
    """Word how many slides are predicted wrong or in doubt."""
    scored = [result for result in results if result.probability is not None]
    judged = [result for result in scored if result.verdict]
    wrong, doubtful = counts_to_look_at(results).values()
    verb = "is" if wrong == 1 else "are"
    title = (
        f"{wrong} of {len(judged)} {noun}s {verb} predicted wrong"
        if judged
        else f"{len(scored)} {noun}{'s' * (len(scored) != 1)}"
    )
    if doubtful:
        title += f", {doubtful} in doubt"
    return title + (f" (threshold {scored[0].threshold:.2f})" if scored else "")


def _slide_rows(results: Sequence[SlideResult]) -> Rows:
    """List slides with a prediction."""
    return [
        (result.slide_id, result.split, result.label, result.predicted, f"{result.probability:.2f}", result.reason)
        for result in results
    ]


def evaluation_of(metrics: Mapping[str, Any], found: Mapping[str, Any]) -> Evaluation:
    """Rebuild an evaluation from a split's values in ``metrics.json`` and ``intervals.json``."""
    bounds = {name: value for name, value in found.items() if not isinstance(value, int)}
    return Evaluation(
        metrics=dict(metrics),
        intervals={name: None if value is None else (value[0], value[1]) for name, value in bounds.items()},
        counts={name: value for name, value in found.items() if isinstance(value, int)},
    )
