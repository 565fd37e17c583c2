"""The manifest: which slides there are, their labels, patients and splits.

Every rule is checked before anything starts, and every row that breaks one is reported at once with its line.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from distmil.cohort.columns import find_columns, setting
from distmil.cohort.faults import Fault, manifest_error
from distmil.cohort.kinds import is_slide
from distmil.cohort.listing import list_slides
from distmil.cohort.row import RowRules, check_row, is_empty_word
from distmil.cohort.slides import Cohort, Slide, draw_splits
from distmil.cohort.table import Table, read_table
from distmil.config.data import CohortConfig
from distmil.errors import ConfigError, ManifestError
from distmil.slides.file_version import same_files

logger = logging.getLogger(__name__)

_GUESSED = "the file is not UTF-8 and was read as Windows-1252; save it as CSV (UTF-8)"
_MOST_VALUES = 10

Row = tuple[int, Slide]
"""A slide and its line in the manifest."""


def read_cohort(
    config: CohortConfig,
    *,
    manifest: str | Path,
    needs_labels: bool,
    needs_splits: bool,
    are_classes_known: bool = True,
    needs_slides: bool = True,
) -> Cohort:
    """Read and check a manifest, and draw splits by patient where it has none and they are needed.

    Args:
        config: Columns, classes and fractions.
        manifest: CSV or Parquet file; a slide or a folder of slides where neither labels nor splits are needed.
        needs_labels: Every slide needs a label.
        needs_splits: Every slide needs a split.
        are_classes_known: False leaves the values of labels unchecked and every label None.
        needs_slides: False lets rows be without a slide's file, where its features are used.

    Raises:
        ConfigError: If ``cohort.columns`` or ``cohort.class_names`` is wrong.
        ManifestError: With the offending rows and their lines.
    """
    path = Path(manifest).expanduser().absolute()
    _check_class_names(config, is_complete=are_classes_known)
    table = _open(path, str(manifest), is_list_enough=not (needs_labels or needs_splits))
    columns = find_columns(path, table.header, config.columns, needs_labels=needs_labels, needs_slides=needs_slides)
    _check_ids(path, table, columns)
    if not are_classes_known:
        columns.pop("label", None)
    rules = RowRules(
        path.parent, config.classes, config.class_names, needs_labels and are_classes_known, table.is_guessed,
        needs_slides,
    )  # fmt: skip
    rows, faults = [], []
    for line, texts in table.rows:
        slide, wrong = check_row(line, {column: texts[i] for column, i in columns.items()}, rules)
        rows.append((line, slide))
        faults += wrong
    faults += _check_together(rows, faults, table.unit)
    copies = [[rows[i] for i in group] for group in same_files([_there(slide.path) for _, slide in rows])]
    faults += _split_copies(copies)
    if faults:
        notes = [*_label_note(table, columns, faults, config), *([_GUESSED] if table.is_guessed else [])]
        raise manifest_error(path, faults, unit=table.unit, notes=notes)
    if copies:
        logger.warning("%s", _copy_doubt(copies))
    cohort = Cohort(_one_patient_per_file(rows, copies), classes=config.classes)
    if needs_splits and all(slide.split is None for slide in cohort.slides):
        return draw_splits(cohort, config)
    return cohort


def _open(path: Path, given: str, *, is_list_enough: bool) -> Table:
    """Read the table, or list the slides of a folder. Raises: ManifestError."""
    if "://" in given:
        raise ManifestError(f"cohort.manifest = {given!r}: a manifest is read through the file system; mount the store")
    if path.is_dir() or (path.is_file() and is_slide(path)):
        if is_list_enough:
            return list_slides(path)
        what = "a folder" if path.is_dir() else "a slide"
        raise ManifestError(
            f"{path}: this is {what}, which has neither labels nor splits; set cohort.manifest to a CSV file with the "
            "columns slide_id, slide_path and label, a row a slide (tile, embed and predict take folders and slides)"
        )
    if not path.is_file():
        raise ManifestError(f"there is no manifest at {path}; set cohort.manifest to a CSV or Parquet file")
    return read_table(path)


def _check_class_names(config: CohortConfig, *, is_complete: bool) -> None:
    """Check that every class of ``cohort.class_names`` exists. Raises: ConfigError."""
    for text, name in config.class_names.items():
        if is_complete and name not in config.classes:
            raise ConfigError(
                f"cohort.class_names: {text!r} is to be {name!r}, which is not a class; expected one of "
                f"{', '.join(config.classes)} (cohort.classes)"
            )


def _check_ids(path: Path, table: Table, columns: Mapping[str, int]) -> None:
    """Refuse ids that Parquet has as numbers. Raises: ManifestError."""
    for column in ("slide_id", "patient_id"):
        if kind := table.not_text.get(columns.get(column, -1)):
            raise ManifestError(f"{path}: column {column} is {kind}; ids are text (numbers lose their leading zeros)")


def _label_note(table: Table, columns: Mapping[str, int], faults: Sequence[Fault], config: CohortConfig) -> list[str]:
    """Say which values the labels have where some are no class, and how to map them."""
    lines = {fault.line for fault in faults if fault.column == "label"}
    texts = Counter(cells[columns["label"]] for line, cells in table.rows if line in lines)
    unknown = [(text, count) for text, count in texts.most_common() if not is_empty_word(text)]
    if not 0 < len(unknown) <= _MOST_VALUES:
        return []
    values = ", ".join(f"{text} ({count})" for text, count in unknown)
    pairs = {text: "..." for text, _ in unknown}
    classes = ", ".join(config.classes)
    mapping = setting("cohort.class_names", pairs)
    return [f"labels that are no class: {values}; say which class each is ({classes}): {mapping}"]


def _check_together(rows: Sequence[Row], faults: Sequence[Fault], unit: str) -> list[Fault]:
    """Find the faults between rows: duplicate ids, split patients, splits given for some only."""
    found = []
    first_line: dict[str, int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    wrong = {(fault.line, fault.column) for fault in faults}
    has_split = any(slide.split for _, slide in rows) or any(column == "split" for _, column in wrong)
    for line, slide in rows:
        first = first_line.setdefault(slide.slide_id, line)
        if first != line and (line, "slide_id") not in wrong:
            text = f"slide_id {slide.slide_id!r} is a duplicate of {unit} {first}"
            found.append(Fault(line, text, "slide_id", "slide_id is a duplicate"))
        if slide.split is None:
            if has_split and (line, "split") not in wrong:
                text = "split is empty while other rows have one; fill all of them or none"
                found.append(Fault(line, text, "split", text))
            continue
        split, earlier = split_of.setdefault(slide.patient_id, (slide.split, line))
        if split != slide.split:
            text = f"patient {slide.patient_id!r} is in {slide.split}, but in {split} on {unit} {earlier}"
            found.append(Fault(line, text, "patient_id", "the patient is in several splits"))
    return found


def _there(path: str) -> str:
    """Leave out a slide that is not on this machine, as beside features it need not be."""
    return path if path and Path(path).exists() else ""


def _split_copies(copies: Sequence[Sequence[Row]]) -> list[Fault]:
    """Refuse one file in two splits: the model would be evaluated on what it was trained on."""
    faults = []
    for (first_line, first), *others in copies:
        for line, slide in others:
            if slide.split != first.split and slide.slide_id != first.slide_id:
                text = (
                    f"slide {slide.slide_id!r} is in {slide.split}, and {first.slide_id!r} on line {first_line}, which "
                    f"is the same file, in {first.split}"
                )
                faults.append(Fault(line, text, "slide_path", "the file is in several splits"))
    return faults


def _copy_doubt(copies: Sequence[Sequence[Row]]) -> str:
    """Word the warning about slides that are one file."""
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
