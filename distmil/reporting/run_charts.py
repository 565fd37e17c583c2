"""The charts of a run: its epochs, and of each split ROC, precision-recall, calibration and lesion FROC."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distmil.evaluation.intervals import Bootstrap
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.tables import FROC, RELIABILITY
from distmil.models.losses import LOSSES
from distmil.reporting.charts import Axis, Chart, Key, Mark, Plane, dot_key, look
from distmil.reporting.curves import PLACES, Curve, precision_recall, roc

Row = Mapping[str, float | None]

_EPOCH_CHARTS: Mapping[str, Mapping[str, str]] = {
    "Loss": {"loss": "train, weighted sum", "val_slide_loss": "validation, slides"},
    "Parts of the training loss": {f"loss_{name}": name for name in LOSSES},
    "Validation": {
        "val_slide_auc": "slide AUC",
        "val_patch_auc_probability": "patch AUC",
        "val_patch_ap_probability": "patch average precision",
    },
}


@dataclass(frozen=True)
class Course:
    """The epochs of one training."""

    rows: Sequence[Row]
    """Metrics of each epoch."""
    chosen: int | None = None
    """The epoch whose weights were kept, counted from 0."""


def epoch_charts(courses: Mapping[str, Course]) -> list[Chart]:
    """Draw metrics over epochs, a line for each training.

    Args:
        courses: By name, such as that of a fold.
    """
    return [
        _epoch_chart(title, {name: words for name, words in lines.items() if _has(courses, name)}, courses)
        for title, lines in _EPOCH_CHARTS.items()
        if any(_has(courses, name) for name in lines)
    ]


def _has(courses: Mapping[str, Course], name: str) -> bool:
    return any(row.get(name) is not None for course in courses.values() for row in course.rows)


def _epoch_chart(title: str, lines: Mapping[str, str], courses: Mapping[str, Course]) -> Chart:
    values = {(name, fold): _values(course, name) for name in lines for fold, course in courses.items()}
    epochs = Axis.over("epoch", [1, max(len(course.rows) for course in courses.values())], is_whole=True)
    is_share = title == "Validation"
    up = Axis.of_share("") if is_share else Axis.over("", [0.0, *itertools.chain(*values.values())])
    plane, marks = Plane(epochs, up), []
    for (name, fold), value_N in values.items():
        series = list(lines).index(name)
        epoch_N = np.arange(1, len(value_N) + 1)
        label = f"{lines[name]}{', ' * bool(fold)}{fold}"
        marks.append(Mark(plane.line(epoch_N, value_N), look("line", series), label))
        chosen = courses[fold].chosen
        if chosen is not None and math.isfinite(value_N[chosen]):
            at = f"{label}: {value_N[chosen]:.3g} in epoch {chosen + 1}"
            marks.append(Mark(plane.dots(chosen + 1, value_N[chosen], series=series), look("dot", series), at))
    keys = [Key(look("line", i), words) for i, words in enumerate(lines.values())]
    note = f"A line for each of {len(courses)} trainings." * (len(courses) > 1)
    return Chart(title, plane, marks, keys, note)


def _values(course: Course, name: str) -> list[float]:
    return [math.nan if (value := row.get(name)) is None else value for row in course.rows]


def split_charts(evaluation: Evaluation, results: Sequence[SlideResult], *, normal: str) -> list[Chart]:
    """Draw what is known of a split; a chart that is not defined is left out.

    Args:
        evaluation: Its metrics and tables.
        results: Its slides with a label and a prediction.
        normal: Name of class 0.
    """
    is_positive = np.array([one.label != normal for one in results], bool)
    score = np.array([one.probability for one in results], float)
    bootstrap = Bootstrap.of([one.patient_id for one in results])
    charts = [
        _roc_chart(evaluation, roc(is_positive, score, bootstrap)),
        _precision_chart(evaluation, precision_recall(is_positive, score, bootstrap), float(is_positive.mean())),
        reliability_chart(evaluation.details.get(RELIABILITY, ())),
        froc_chart(evaluation.details.get(FROC, ())),
    ]
    return [chart for chart in charts if chart is not None]


def _roc_chart(evaluation: Evaluation, curve: Curve | None) -> Chart | None:
    """Draw the ROC curve with the point of the threshold."""
    if curve is None:
        return None
    plane = Plane(Axis.of_share("1 - specificity"), Axis.of_share("sensitivity"))
    marks = [*_curve(plane, curve), Mark(plane.line([0, 1], [0, 1]), "guide", "chance")]
    keys = [Key("line s0", f"AUC {in_words(evaluation, 'slide_auc')}"), *_band_key(curve)]
    sensitivity, specificity = (evaluation.metrics.get(f"slide_{name}") for name in ("sensitivity", "specificity"))
    if sensitivity is not None and specificity is not None:
        marks.append(Mark(plane.dots(1 - specificity, sensitivity, series=1), "dot s1", "at the threshold"))
        keys.append(dot_key(1, f"threshold: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}"))
    return Chart("ROC of slides", plane, marks, keys)


def _precision_chart(evaluation: Evaluation, curve: Curve | None, prevalence: float) -> Chart | None:
    if curve is None:
        return None
    plane = Plane(Axis.of_share("sensitivity (recall)"), Axis.of_share("precision"))
    marks = [*_curve(plane, curve), Mark(plane.line([0, 1], [prevalence, prevalence]), "guide", "chance")]
    keys = [Key("line s0", f"average precision {in_words(evaluation, 'slide_ap')}"), *_band_key(curve)]
    return Chart("Precision and recall of slides", plane, marks, keys)


def _curve(plane: Plane, curve: Curve) -> list[Mark]:
    line = Mark(plane.line(curve.x_T, curve.y_T), "line s0")
    if curve.low_G is None or curve.high_G is None:
        return [line]
    return [Mark(plane.band(PLACES, curve.low_G, curve.high_G), "band s0"), line]


def _band_key(curve: Curve) -> list[Key]:
    return [] if curve.low_G is None else [Key("band s0", "95 % of draws of patients", "M1 2H25V12H1Z")]


def reliability_chart(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw the share of abnormal slides over their mean probability, with intervals; None without rows."""
    if not rows:
        return None
    plane = Plane(Axis.of_share("mean probability"), Axis.of_share("share abnormal"))
    marks = [Mark(plane.line([0, 1], [0, 1]), "guide", "calibrated")]
    names = list(dict.fromkeys(row["probability"] for row in rows))
    for series, name in enumerate(names):
        own = [row for row in rows if row["probability"] == name]
        for row in own:
            x, y = row["mean_probability"], row["share_abnormal"]
            if row["low"] is not None:
                marks.append(Mark(plane.line([x, x], [row["low"], row["high"]]), look("whisker", series)))
            at = f"{row['slides']} slides, mean probability {x:.2f}: {y:.2f} abnormal"
            marks.append(Mark(plane.dots(x, y, series=series), look("dot", series), at))
    keys = [dot_key(i, "probabilities" if name == "as it is" else str(name)) for i, name in enumerate(names)]
    return Chart("Calibration of slides", plane, marks, [*keys, Key("guide", "perfectly calibrated")])


def froc_chart(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw the sensitivity to lesions over false positives per slide, a line for each score; None without rows."""
    points = [row for row in rows if row["false_positives_per_slide"] != "mean"]
    if not points:
        return None
    places = sorted({row["false_positives_per_slide"] for row in points})
    ticks = [(math.log2(at), f"{at:g}") for at in places]
    across = Axis("false positives per slide", ticks[0][0], ticks[-1][0], ticks)
    plane, marks, keys = Plane(across, Axis.of_share("sensitivity to lesions")), [], []
    for series, name in enumerate(dict.fromkeys(row["score"] for row in points)):
        own = [row for row in points if row["score"] == name]
        x = [math.log2(row["false_positives_per_slide"]) for row in own]
        marks.append(Mark(plane.line(x, [row["sensitivity"] for row in own]), look("line", series), name))
        mean = next(
            row["sensitivity"] for row in rows if (row["score"], row["false_positives_per_slide"]) == (name, "mean")
        )
        keys.append(Key(look("line", series), f"{name}: mean {mean:.2f}"))
    return Chart("Lesion FROC", plane, marks, keys)


def in_words(evaluation: Evaluation, name: str) -> str:
    """Word a metric with its interval, two digits each."""
    value, interval = evaluation.metrics.get(name), evaluation.intervals.get(name)
    if value is None:
        return "not defined"
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
