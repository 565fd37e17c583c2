"""The slides of a prediction as one table for people: every slide of the job, what needs a look first, as CSV."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from distmil.cohort import Slide
from distmil.inference.scoring import READ_OUTS
from distmil.inference.tables import Row

RIGHT, WRONG = "right", "wrong"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEXTS = frozenset(
    ("slide_id", "status", "verdict", "label", "predicted", "split", "patient_id", "site", "reason", "slide_path")
)
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True)
class SlideResult:
    """A slide and what became of it. Empty fields are None or ""."""

    slide_id: str
    status: str
    """``ok``, or why the slide was dropped, as in the records of tiling."""
    verdict: str = ""
    """``right`` or ``wrong``, where the label is known and not a pseudo label."""
    label: str = ""
    predicted: str = ""
    probability: float | None = None
    """The read-out that counts."""
    threshold: float | None = None
    """From which probability the slide counts as abnormal."""
    split: str = ""
    patient_id: str = ""
    site: str = ""
    bag: float | None = None
    max: float | None = None
    topk_mean: float | None = None
    regions: float | None = None
    num_patches: int | None = None
    reason: str = ""
    """Why the slide was dropped, or what raises doubt about it."""
    slide_path: str = ""
    class_probabilities: Mapping[str, float] = field(default_factory=dict)
    """``probability_<class>`` of every class, where there are more than two."""

    @property
    def margin(self) -> float:
        """Distance of the probability from the threshold; 0 without a prediction."""
        return 0.0 if self.probability is None or self.threshold is None else abs(self.probability - self.threshold)


def slide_results(
    slides: Sequence[Slide],
    rows: Mapping[str, Row],
    *,
    classes: Sequence[str],
    threshold: float,
    statuses: Mapping[str, tuple[str, str]],
    doubts: Mapping[str, Sequence[str]],
) -> list[SlideResult]:
    """Put what is known of every slide together, in the order in which people should look.

    Wrong slides come first, the surest mistake on top; then doubtful ones, the nearest to the threshold on top; then
    the others by falling probability; last the dropped ones.

    Args:
        slides: The slides of the job.
        rows: Slide predictions by slide id.
        classes: Class names.
        threshold: Of the read-out that counts.
        statuses: Status and reason of slides, by slide id.
        doubts: Texts by slide id.
    """
    found = []
    for slide in slides:
        row = rows.get(slide.slide_id)
        status, why = statuses.get(slide.slide_id, ("ok" if row else "not predicted", ""))
        reasons = [*([why] if why else []), *doubts.get(slide.slide_id, ())]
        label = "" if slide.label is None else classes[slide.label]
        found.append(_result(slide, row, label=label, status=status, reason="; ".join(reasons), threshold=threshold))
    return sorted(found, key=_place)


def _result(slide: Slide, row: Row | None, *, label: str, status: str, reason: str, threshold: float) -> SlideResult:
    known: dict[str, Any] = {
        "slide_id": slide.slide_id,
        "status": status,
        "label": label,
        "split": slide.split or "",
        "patient_id": slide.patient_id,
        "site": slide.site or "",
        "reason": reason,
        "slide_path": slide.path,
    }
    if row is None:
        return SlideResult(**known)
    is_judged = slide.label is not None and not slide.is_pseudo
    return SlideResult(
        **known,
        **{name: row[name] for name in ("predicted", "probability", *READ_OUTS, "num_patches")},
        threshold=threshold,
        verdict=(RIGHT if row["predicted"] == label else WRONG) if is_judged else "",
        class_probabilities={name: value for name, value in row.items() if name.startswith("probability_")},
    )


def _place(result: SlideResult) -> tuple[int, float]:
    if result.probability is None:
        return 3, 0.0
    if result.verdict == WRONG:
        return 0, -result.margin
    return (1, result.margin) if result.reason else (2, -result.probability)


def to_csv(results: Sequence[SlideResult], *, without: Collection[str] = ()) -> bytes:
    """Write results as CSV: UTF-8 with a byte order mark, text in quotes, numbers bare.

    A text that a spreadsheet would run as a formula gets an apostrophe in front.

    Args:
        results: The rows.
        without: Columns to leave out.
    """
    extra = list(dict.fromkeys(name for result in results for name in result.class_probabilities))
    left_out = {"class_probabilities", *without}
    names = [name for name in SlideResult.__dataclass_fields__ if name not in left_out] + extra
    file = io.StringIO()
    writer = csv.DictWriter(file, names, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for result in results:
        values = asdict(result) | dict(result.class_probabilities)
        writer.writerow({name: _harmless(values.get(name)) for name in names})
    return (_BOM + file.getvalue()).encode()


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows of equal keys as CSV, in the manner of ``to_csv``."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return (_BOM + file.getvalue()).encode()


def from_csv(data: bytes) -> list[SlideResult]:
    """Read what ``to_csv`` wrote."""
    results = []
    for line in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")):
        values: dict[str, Any] = {name: _value(name, text) for name, text in line.items()}
        extra = {name: values.pop(name) for name in list(values) if name.startswith("probability_")}
        known = {name: value for name, value in extra.items() if value is not None}
        results.append(SlideResult(**values, class_probabilities=known))
    return results


def _value(name: str, text: str) -> object:
    """Turn a cell into the value that it was."""
    if name in _TEXTS:
        return text[1:] if text.startswith("'") and _is_formula(text) else text
    if not text:
        return None
    return int(text) if name == "num_patches" else float(text)


def _harmless(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def _is_formula(text: str) -> bool:
    """Check whether a spreadsheet would run a text, or would where an apostrophe is taken off."""
    return text.lstrip("'").startswith(_FORMULA)
