"""Evaluated runs against the first one as a page. It names no path, patient or site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from distmil.evaluation.comparison import Comparison
from distmil.evaluation.slide_results import WRONG, SlideResult
from distmil.evaluation.words import Table
from distmil.reporting.charts import RING, Axis, Chart, Key, Mark, Plane, dot_key, look, shape
from distmil.reporting.rendering import render

MOST_CHANGED = 200
"""Slides that changed and that are named; ``changed.csv`` has all."""

_METRICS = {
    "auc": "AUC", "ap": "average precision", "accuracy": "accuracy", "sensitivity": "sensitivity",
    "specificity": "specificity", "balanced_accuracy": "balanced accuracy", "brier": "Brier score",
}  # fmt: skip


@dataclass(frozen=True)
class ComparisonPage:
    """All that the page shows, as plain values."""

    about: str
    """Of what slides the comparison is."""
    comparisons: Sequence[Comparison]
    judged: Mapping[str, Mapping[str, SlideResult]]
    """Slides with a label and a prediction by run and slide id."""
    normal: str
    """Name of class 0."""
    viewer: str
    """Address of the viewer, which the slides link to."""

    def to_html(self) -> bytes:
        """Make the page; equal values make equal bytes."""
        first = self.comparisons[0].first
        others = [one.other for one in self.comparisons]
        return render(
            "comparison.html.j2",
            title=f"{' and '.join(others)} against {first}",
            kind="Comparison",
            heading=f"{' and '.join(others)} against {first}",
            about=self.about,
            viewer=self.viewer,
            parts=[self._part(one) for one in self.comparisons],
        )

    def _part(self, one: Comparison) -> dict[str, Any]:
        changed = [{**row, "link": slide_link(self.viewer, row["slide_id"])} for row in one.changed[:MOST_CHANGED]]
        return {
            "first": one.first,
            "other": one.other,
            "table": difference_table(one),
            "chart": self._scatter(one),
            "changed": changed,
            "num_changed": len(one.changed),
            "num_wrong": sum(row["now"] == WRONG for row in one.changed),
        }

    def _scatter(self, one: Comparison) -> Chart:
        """Draw each slide by both probabilities; those that changed their prediction have a ring and a link."""
        ours, theirs = self.judged[one.first], self.judged[one.other]
        plane = Plane(Axis.of_share(f"probability by {_short(one.first)}"), Axis.of_share(f"by {_short(one.other)}"))
        marks, keys = [Mark(plane.line([0, 1], [0, 1]), "guide", "equal")], list[Key]()
        words = [f"threshold of {name}" for name in (one.first, one.other)]
        marks += [Mark(plane.line([at, at], [0, 1]), "line s4", words[0]) for at in _thresholds(ours)]
        marks += [Mark(plane.line([0, 1], [at, at]), "line s4", words[1]) for at in _thresholds(theirs)]
        labels = sorted({result.label for result in ours.values()}, key=lambda label: (label != self.normal, label))
        for series, label in enumerate(labels):
            own = [name for name, result in ours.items() if result.label == label]
            across, up = (np.array([run[name].probability for name in own], float) for run in (ours, theirs))
            path = plane.dots(across, up, series=series)
            marks.append(Mark(path, look("dot", series)))
            keys.append(dot_key(series, f"labelled {label}"))
        marks += [self._ring(plane, row) for row in one.changed[:MOST_CHANGED]]
        if one.changed:
            keys.append(Key("ring", "predicted otherwise", shape((13, 7), 0, radius=RING)))
        return Chart("Probability of each slide", plane, marks, [*keys, Key("line s4", "thresholds")])

    def _ring(self, plane: Plane, row: Mapping[str, Any]) -> Mark:
        """Draw a ring around a slide that changed, linked into the viewer."""
        words = f"{row['slide_id']}, labelled {row['label']}: {row['predicted_first']}, then {row['predicted_other']}"
        ring = plane.ring(row["probability_first"], row["probability_other"])
        return Mark(ring, "ring", words, slide_link(self.viewer, row["slide_id"]))


def _thresholds(results: Mapping[str, SlideResult]) -> list[float]:
    return sorted({result.threshold for result in results.values() if result.threshold is not None})


def difference_table(one: Comparison) -> Table:
    """Word the metrics of both runs, their difference with its interval, and p of the AUC."""
    rows = [
        (_METRICS[row["metric"]], *(_digits(row[name]) for name in ("first", "other")), _signed(row["difference"]),
         "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}",
         "" if row["p"] is None else f"{row['p']:.3f}")
        for row in one.rows
    ]  # fmt: skip
    return Table("", ("metric", one.first, one.other, "difference", "95 % interval", "p (DeLong)"), rows)


def slide_link(viewer: str, slide_id: str) -> str:
    """Make the permanent link to a slide in the viewer."""
    return f"{viewer}#slide={quote(slide_id, safe='')}"


def _digits(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _short(name: str, *, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."
