"""The report of a training or an evaluation as one page. It names no path, patient or site."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import SlideResult
from distmil.evaluation.words import Rows, Table, metric_tables
from distmil.inference.tables import GROUPS
from distmil.inference.thresholds import YOUDEN, aim_in_words
from distmil.reporting.gallery import choose_slides, small_picture
from distmil.reporting.rendering import render
from distmil.reporting.run_charts import Course, epoch_charts, in_words, split_charts

SECTIONS: Mapping[str, Sequence[str]] = {
    "train": ("cohort", "tiling", "labels", "encoder", "features", "bags", "model", "losses", "training", "prediction"),
    "evaluate": ("cohort", "tiling", "labels", "encoder", "features", "model", "prediction"),
}
"""Sections of the configuration that a job's results depend on."""
_CARDS = {
    "slide_auc": "AUC",
    "slide_ap": "average precision",
    "slide_sensitivity": "sensitivity",
    "slide_specificity": "specificity",
    "slide_balanced_accuracy": "balanced accuracy",
    "slide_ece": "calibration error",
}
_CLASS_METRICS = ("auc", "ap", "sensitivity", "specificity")


class Thresholds(NamedTuple):
    """The thresholds and temperatures of a bundle, and what chose them."""

    slides: Mapping[str, float]
    """By read-out."""
    patch: float
    temperatures: Mapping[str, float]
    """By read-out, where validation gave one."""
    chosen: Mapping[str, Any]
    """The bundle's ``metrics``: ``last``, the validation of the epoch that was kept, and ``threshold_aim``."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All that a report shows, as plain values."""

    job: str
    """``train`` or ``evaluate``."""
    bundle: str
    """Name of the bundle's run."""
    slides: Sequence[Slide]
    """Of the manifest."""
    classes: Sequence[str]
    data: tuple[str, str]
    """Name and fingerprint of the manifest's slides."""
    config: Config
    thresholds: Thresholds
    noun: str = "slide"
    results: Sequence[SlideResult] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """By split."""
    courses: Mapping[str, Course] = field(default_factory=dict)
    """Epochs of each training by its name, such as that of a fold."""
    picture: Callable[[str], bytes | None] = lambda _: None
    """Reads the map of a slide as PNG; None where none was drawn."""

    def to_html(self) -> bytes:
        """Make the page; equal values make equal bytes."""
        judged = [one for one in self.results if one.verdict and one.probability is not None]
        splits = [
            self._split(name, evaluation, [one for one in judged if (one.split or "all") == name])
            for name, evaluation in self.evaluations.items()
        ]
        changed, others = settings_of(self.config, SECTIONS[self.job])
        return render(
            "run.html.j2",
            title=f"{self.bundle}: {self.job}",
            kind="Training report" if self.job == "train" else "Evaluation report",
            heading=self.bundle,
            about=self._about(),
            noun=self.noun,
            splits=splits,
            gallery=self._gallery(judged),
            epochs=epoch_charts(self.courses),
            thresholds=threshold_table(self.thresholds, noun=self.noun),
            supervision=supervision_table(self.slides, self.noun),
            data=self.data,
            changed=changed,
            others=others,
        )

    def _about(self) -> str:
        predicted = sum(one.probability is not None for one in self.results)
        if not self.results:
            return f"no held-out {self.noun}s were predicted"
        text = f"{predicted} {self.noun}s predicted"
        dropped = len(self.results) - predicted
        return text + (f", {dropped} could not be used" if dropped else "")

    def _split(self, name: str, evaluation: Evaluation, judged: Sequence[SlideResult]) -> dict[str, Any]:
        cards = [
            (label, evaluation.metrics[metric], in_words(evaluation, metric))
            for metric, label in _CARDS.items()
            if evaluation.metrics.get(metric) is not None
        ]
        return {
            "name": name,
            "cards": [(label, value, *text.partition(" ")[::2]) for label, value, text in cards],
            "charts": split_charts(evaluation, judged, normal=self.classes[0]) if judged else [],
            "confusion": confusion(judged, self.classes),
            "threshold": judged[0].threshold if judged else None,
            "tables": metric_tables(name, evaluation, self.noun),
            "by_class": _class_table(evaluation.details.get(GROUPS, ())),
        }

    def _gallery(self, judged: Sequence[SlideResult]) -> dict[str, list[tuple[SlideResult, bytes | None]]]:
        """Put the chosen slides beside their pictures."""
        return {
            kind: [(one, small_picture(png) if (png := self.picture(one.slide_id)) else None) for one in chosen]
            for kind, chosen in choose_slides(judged).items()
            if chosen
        }


class Cell(NamedTuple):
    """A number of slides of a label with a prediction."""

    slides: int
    share: float
    """Of the slides with that label."""
    is_right: bool


def confusion(judged: Sequence[SlideResult], classes: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Count slides by label (rows) and prediction (columns), classes in their order; [] without slides."""
    counts = Counter((one.label, one.predicted) for one in judged)
    rows = []
    for label in classes if judged else ():
        total = sum(counts[label, name] for name in classes)
        cells = [Cell(counts[label, name], counts[label, name] / (total or 1), label == name) for name in classes]
        rows.append((label, cells))
    return rows


def _class_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Word the metrics of each class against the others; sites stay out, for their names may be private."""
    of_class = [row for row in rows if row["by"] == "class"]
    cells = []
    for name in dict.fromkeys(row["group"] for row in of_class):
        found = {row["metric"]: row for row in of_class if row["group"] == name}
        words = [_with_bounds(found[metric]) for metric in _CLASS_METRICS]
        cells.append((str(name), str(found["auc"]["positive_slides"]), *words))
    return Table(
        "each class against the others",
        ("class", "slides", "AUC", "average precision", "sensitivity", "specificity"),
        cells,
    )


def _with_bounds(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "not defined"
    return f"{row['value']:.2f}" + ("" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})")


def threshold_table(thresholds: Thresholds, *, noun: str = "slide") -> Table:
    """Word every threshold and temperature with its aim and where it came from."""
    last, aim = thresholds.chosen.get("last") or {}, thresholds.chosen.get("threshold_aim")
    epoch = thresholds.chosen.get("epoch")
    where = "validation" + (f", epoch {epoch + 1}" if isinstance(epoch, int) else "")
    if "folds" in thresholds.chosen:
        where = "train slides, each out of fold"
    rows: Rows = []
    for name, value in [*thresholds.slides.items(), ("patch", thresholds.patch)]:
        own = YOUDEN if name == "patch" else aim
        words = "aim not recorded" if own is None else f"by {aim_in_words(own).partition(',')[0]}"
        key = f"val_threshold_{name}"
        if last.get(key) is not None:
            source = f"chosen on {where}, {words}"
        elif key in last:
            source = "the default: validation has one class only, or no threshold better than chance"
        else:
            source = "not recorded" if last else "the default: nothing was validated"
        temperature = thresholds.temperatures.get(name)
        of = "patches" if name == "patch" else f"{noun}s, {name}"
        rows.append((of, f"{value:.4g}", source, "" if temperature is None else f"{temperature:.3g}"))
    return Table("thresholds", ("of", "threshold", "where it came from", "temperature"), rows)


def supervision_table(slides: Sequence[Slide], noun: str) -> Table:
    """Count the slides of each split by what the manifest knows of them."""
    columns = ("normal", "targets all outlined", "outlined in part", "label only", "pseudo label", "no label")
    rows = []
    for split in sorted({slide.split or "all" for slide in slides}):
        own = [slide for slide in slides if (slide.split or "all") == split]
        kinds = Counter(map(_supervision, own))
        patients = len({slide.patient_id for slide in own})
        rows.append((split, str(len(own)), str(patients), *(str(kinds[name]) for name in columns)))
    return Table("supervision, by the manifest", ("split", f"{noun}s", "patients", *columns), rows)


def _supervision(slide: Slide) -> str:
    if slide.label is None:
        return "no label"
    if slide.is_pseudo:
        return "pseudo label"
    if slide.label == 0:
        return "normal"
    if slide.annotation_path is None:
        return "label only"
    return "targets all outlined" if slide.annotation_complete else "outlined in part"


def settings_of(config: Config, sections: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """List the settings that differ from the defaults, and the others, without those that are paths."""
    defaults = Config().shareable()
    shown = {key: value for key, value in config.shareable().items() if key.partition(".")[0] in sections}
    changed = {key: str(value) for key, value in shown.items() if value != defaults[key]}
    return changed, {key: str(value) for key, value in shown.items() if key not in changed}
