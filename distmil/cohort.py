"""The manifest: which slides there are, their labels, patients and splits.

Every rule is checked before anything starts, and every row that breaks one is reported at once with its line.
"""

import csv
import difflib
import io
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmil.config.data import CohortConfig
from distmil.config.root import fingerprint
from distmil.errors import ManifestError
from distmil.slides.file_version import same_files, slide_in_folder, unusable

logger = logging.getLogger(__name__)
T = TypeVar("T")

SPLITS = ("train", "val", "test")
SLIDE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
COLUMNS = (
    "slide_id",
    "slide_path",
    "label",
    "patient_id",
    "split",
    "mpp",
    "annotation_path",
    "annotation_complete",
    "tissue_path",
    "label_source",
    "site",
)
ALIASES = {"case_id": "patient_id"}
SYNONYMS = {
    "patient": "patient_id",
    "case": "patient_id",
    "subject": "patient_id",
    "annotation": "annotation_path",
    "annotations": "annotation_path",
    "complete": "annotation_complete",
    "fully_annotated": "annotation_complete",
    "mask": "annotation_path",
    "class": "label",
    "target": "label",
    "fold": "split",
    "set": "split",
    "microns_per_pixel": "mpp",
}
"""What other tools call a column. Such a name is asked about: left out in silence, it would, say, split a patient."""
_NEAR = 0.8
MAX_LINES_SHOWN = 50
_TRUE, _FALSE = {"true", "1", "yes", "y"}, {"false", "0", "no", "n", ""}


@dataclass(frozen=True)
class Slide:
    """One row of the manifest, checked. Paths are absolute; ``label`` is a class index or None."""

    slide_id: str
    path: str
    label: int | None = None
    patient_id: str = ""
    split: str | None = None
    mpp: float | None = None
    annotation_path: str | None = None
    annotation_complete: bool = False
    tissue_path: str | None = None
    is_pseudo: bool = False
    site: str | None = None


Row = tuple[int, Slide]
"""A slide and its line in the manifest."""


@dataclass(frozen=True)
class Cohort:
    """The slides of a manifest, in its order, with the class names."""

    slides: Sequence[Slide]
    classes: Sequence[str]
    is_split_drawn: bool = False

    def of_split(self, *splits: str) -> list[Slide]:
        """Return the slides of these splits."""
        return [slide for slide in self.slides if slide.split in splits]

    @property
    def fingerprint(self) -> str:
        """Return a hash of ids, labels and splits, which says what a run was trained and judged on."""
        rows = {slide.slide_id: [slide.label, slide.split, slide.is_pseudo] for slide in self.slides}
        return fingerprint({"rows": rows, "classes": list(self.classes)})


def read_cohort(config: CohortConfig, *, manifest: str | Path, needs_labels: bool, needs_splits: bool) -> Cohort:
    """Read and check a manifest, and draw splits by patient where it has none and they are needed.

    Raises:
        ManifestError: With every offending row and its line.
    """
    path = Path(manifest).expanduser().absolute()
    rows = _read_rows(path)
    slides, problems = [], []
    for line, row in rows:
        slide, wrong = _check_row(row, folder=path.parent, classes=config.classes, needs_labels=needs_labels)
        slides.append((line, slide))
        problems += [(line, text) for text in wrong]
    problems += _check_together(slides)
    copies = [[slides[i] for i in group] for group in same_files([slide.path for _, slide in slides])]
    problems += _split_copies(copies)
    if problems:
        raise ManifestError(_report(path, problems))
    if copies:
        logger.warning("%s", _copy_doubt(copies))
    cohort = Cohort(_one_patient_per_file(slides, copies), classes=config.classes)
    if needs_splits and all(slide.split is None for slide in cohort.slides):
        return draw_splits(cohort, config)
    return cohort


def draw_splits(cohort: Cohort, config: CohortConfig) -> Cohort:
    """Draw train, val and test by patient, stratified by the patient's highest label, from ``cohort.split_seed``."""
    patients: dict[str, int] = {}
    for slide in cohort.slides:
        patients[slide.patient_id] = max(patients.get(slide.patient_id, 0), slide.label or 0)
    strata: dict[int, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        strata[patients[patient]].append(patient)
    generator = np.random.default_rng(config.split_seed)
    split_of: dict[str, str] = {}
    for label in sorted(strata):
        order = [strata[label][i] for i in generator.permutation(len(strata[label]))]
        num_val = _share(config.val_fraction, len(order))
        num_test = _share(config.test_fraction, len(order))
        for i, patient in enumerate(order):
            split_of[patient] = "val" if i < num_val else "test" if i < num_val + num_test else "train"
    slides = [replace(slide, split=split_of[slide.patient_id]) for slide in cohort.slides]
    counts = {split: sum(slide.split == split for slide in slides) for split in SPLITS}
    logger.info(
        "the manifest has no split: drew %s by patient, stratified by label (seed %d)", counts, config.split_seed
    )
    return replace(cohort, slides=slides, is_split_drawn=True)


def _share(fraction: float, total: int) -> int:
    """Return how many of a stratum go into a split: rounded, but one at least where there are three to share."""
    return 0 if fraction == 0 else max(round(fraction * total), 1 if total >= 3 else 0)


# --- files -------------------------------------------------------------------------------------------------------


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line, column -> text) of every row. Raises: ManifestError."""
    if not path.is_file():
        raise ManifestError(f"there is no manifest at {path}; set cohort.manifest to a CSV or Parquet file")
    rows = _read_parquet(path) if path.suffix.lower() in {".parquet", ".pq"} else _read_csv(path)
    if not rows:
        raise ManifestError(f"{path}: the manifest has no rows")
    return rows


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    header = text.partition("\n")[0]
    delimiter = (
        ";" if header.count(";") > header.count(",") else "\t" if header.count("\t") > header.count(",") else ","
    )
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    names = _columns(path, next(reader, []))
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ManifestError(f"{path}: line {reader.line_num} is no CSV ({error}); is a quote left open?") from error
    rows = []
    for line, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise ManifestError(f"{path}: line {line} has {len(cells)} cells, the header has {len(names)}")
        rows.append((line, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}))
    return rows


def _read_parquet(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read as Parquet ({error})") from error
    names = _columns(path, table.column_names)
    for name in ("slide_id", "patient_id"):
        if name in names and not _is_text(kind := table.schema.types[names.index(name)]):
            raise ManifestError(f"{path}: column {name} is {kind}; ids are text (numbers lose their leading zeros)")
    table = table.rename_columns(names)
    return [
        (index, {name: "" if value is None else str(value).strip() for name, value in row.items()})
        for index, row in enumerate(table.to_pylist(), start=1)
    ]


def _is_text(kind: pa.DataType) -> bool:
    """Tell whether a column holds text, however it is coded, or nothing at all."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Return the header with aliases resolved. Raises: ManifestError if a needed column is missing or doubled."""
    names = [ALIASES.get(name.strip().lower(), name.strip().lower()) for name in header]
    if not any(names):
        raise ManifestError(f"{path}: there is no column slide_id: the first line, which names the columns, is empty")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ManifestError(f"{path}: column {', '.join(doubled)} is there twice")
    wanted = ("slide_id", "slide_path")
    for needed in wanted:
        if needed not in names:
            near = difflib.get_close_matches(needed, [name for name in names if name not in wanted], n=1)
            hint = f"; is {near[0]!r} meant?" if near else ""
            raise ManifestError(f"{path}: there is no column {needed} among {', '.join(names)}{hint}")
    unknown = [name for name in names if name not in COLUMNS]
    meant = {name: column for name in unknown if (column := _meant(name)) and column not in names}
    if meant:
        questions = ", ".join(f"{name!r} (is {column} meant?)" for name, column in meant.items())
        raise ManifestError(
            f"{path}: column {questions} would not be used; rename it to what is meant, or to something else"
        )
    if unknown:
        logger.info("manifest columns that distmil does not use: %s", ", ".join(unknown))
    return names


def _meant(name: str) -> str | None:
    """Return the column that another name may stand for, None if it is like none."""
    plain = re.sub(r"[^a-z0-9]+", "_", name).strip("_")
    if plain in SYNONYMS or plain in COLUMNS:
        return SYNONYMS.get(plain, plain)
    return next(iter(difflib.get_close_matches(plain, COLUMNS, n=1, cutoff=_NEAR)), None)


# --- rules -------------------------------------------------------------------------------------------------------


def _check_row(
    row: Mapping[str, str], *, folder: Path, classes: Sequence[str], needs_labels: bool
) -> tuple[Slide, list[str]]:
    """Return the slide of a row and what is wrong with it."""
    wrong: list[str] = []

    def take(column: str, parse: Callable[[str], T], default: T) -> T:
        text = row.get(column, "")
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            wrong.append(f"{column} {text!r}: {error}")
            return default

    slide_id = row["slide_id"]
    if not SLIDE_ID.fullmatch(slide_id) or not slide_id.strip("."):
        wrong.append(f"slide_id {slide_id!r}: expected 1 to 128 letters, digits, . _ -")
    if not row["slide_path"]:
        wrong.append("slide_path is empty")
    if needs_labels and not row.get("label"):
        wrong.append(f"label is empty: expected one of {', '.join(classes)}")
    slide = Slide(
        slide_id=slide_id,
        path=take("slide_path", lambda text: _existing(folder, text, may_be_folder=True), ""),
        label=take("label", lambda text: _class_index(text, classes), None),
        patient_id=row.get("patient_id") or slide_id,
        split=take("split", _split, None),
        mpp=take("mpp", _positive, None),
        annotation_path=take("annotation_path", lambda text: _existing(folder, text), None),
        annotation_complete=take("annotation_complete", _flag, False),
        tissue_path=take("tissue_path", lambda text: _existing(folder, text), None),
        is_pseudo=take("label_source", _is_pseudo, False),
        site=row.get("site") or None,
    )
    return slide, wrong


def _check_together(rows: Sequence[tuple[int, Slide]]) -> list[tuple[int, str]]:
    """Return what is wrong between rows: duplicate ids, split patients, splits given for some only."""
    problems = []
    first_line: dict[str, int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    has_split = any(slide.split for _, slide in rows)
    for line, slide in rows:
        if slide.slide_id in first_line:
            problems.append((line, f"slide_id {slide.slide_id!r} is a duplicate of line {first_line[slide.slide_id]}"))
        first_line.setdefault(slide.slide_id, line)
        if slide.split is None:
            if has_split:
                problems.append((line, "split is empty while other rows have one; fill all of them or none"))
            continue
        split, earlier = split_of.setdefault(slide.patient_id, (slide.split, line))
        if split != slide.split:
            problems.append(
                (line, f"patient {slide.patient_id!r} is in {slide.split}, but in {split} on line {earlier}")
            )
    return problems


def _split_copies(copies: Sequence[Sequence[Row]]) -> list[tuple[int, str]]:
    """Refuse one file in two splits: what is learned from it would be judged on it."""
    problems = []
    for (first_line, first), *others in copies:
        problems += [
            (
                line,
                f"slide {slide.slide_id!r} is in {slide.split}, and {first.slide_id!r} on line {first_line}, which is "
                f"the same file, in {first.split}",
            )
            for line, slide in others
            if slide.split != first.split and slide.slide_id != first.slide_id
        ]
    return problems


def _copy_doubt(copies: Sequence[Sequence[Row]]) -> str:
    """Say which slides are one file, in one sentence for all."""
    labels = sum(len({slide.label for _, slide in group}) > 1 for group in copies)
    contradiction = f"; {labels} of them with different labels" if labels else ""
    some = [" = ".join(f"{slide.slide_id} (line {line})" for line, slide in group[:3]) for group in copies[:5]]
    text = ", ".join(some) + ", ..." * (len(copies) > len(some))
    number = "1 file stands" if len(copies) == 1 else f"{len(copies)} files stand"
    return f"{number} in the manifest under several slide ids, each of which counts{contradiction}: {text}"


def _one_patient_per_file(rows: Sequence[Row], copies: Sequence[Sequence[Row]]) -> list[Slide]:
    """Give slides of one file one patient, so that splits and folds never tear them apart."""
    root: dict[str, str] = {}

    def patient(name: str) -> str:
        while name in root:
            name = root[name]
        return name

    for (_, first), *others in copies:
        for _, slide in others:
            one, other = patient(first.patient_id), patient(slide.patient_id)
            if one != other:
                root[other] = one
    return [replace(slide, patient_id=patient(slide.patient_id)) if root else slide for _, slide in rows]


def _report(path: Path, problems: Sequence[tuple[int, str]]) -> str:
    word = "row" if path.suffix.lower() in {".parquet", ".pq"} else "line"
    rows = len({line for line, _ in problems})
    lines = [f"  {word} {line}: {text}" for line, text in sorted(problems)[:MAX_LINES_SHOWN]]
    if len(problems) > MAX_LINES_SHOWN:
        lines.append(f"  ... and {len(problems) - MAX_LINES_SHOWN} more")
    return "\n".join([f"{path}: {rows} {word}{'s' * (rows != 1)} cannot be used", *lines])


def _existing(folder: Path, text: str, *, may_be_folder: bool = False) -> str:
    """Find a file, without opening it; a slide may be the folder that holds it. Raises: ValueError."""
    if "://" in text:
        raise ValueError("slides and annotations are read through the file system; mount the store and give a path")
    try:
        path = folder / Path(text).expanduser()
        is_there = path.exists()
        if not is_there:
            where = f" ({path})" if not Path(text).is_absolute() else ""
            raise ValueError(f"there is no such file{where}")
        if may_be_folder and path.is_dir():
            path = slide_in_folder(path)
        refusal = unusable(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    if refusal:
        raise ValueError(refusal)
    return str(path)


def _class_index(text: str, classes: Sequence[str]) -> int:
    if text in classes:
        return list(classes).index(text)
    number = text.removesuffix(".0")
    if number.isdecimal() and int(number) < len(classes):
        return int(number)
    near = difflib.get_close_matches(text.lower(), [name.lower() for name in classes], n=1)
    hint = f"; did you mean {next(name for name in classes if name.lower() == near[0])}?" if near else ""
    raise ValueError(f"not a class; expected {', '.join(classes)} or 0 to {len(classes) - 1} (cohort.classes){hint}")


def _split(text: str) -> str:
    if text.lower() not in SPLITS:
        raise ValueError("expected train, val or test")
    return text.lower()


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e6:
        raise ValueError("expected um per pixel, a number above 0")
    return value


def _flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("expected true or false")


def _is_pseudo(text: str) -> bool:
    if text.lower() not in {"given", "pseudo"}:
        raise ValueError("expected given or pseudo")
    return text.lower() == "pseudo"
