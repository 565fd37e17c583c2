"""The manifest: which slides there are, their labels, patients and splits.

Every rule is checked before anything starts, and every row that breaks one is reported at once with its line.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distmil.cohort.row import check_row
from distmil.cohort.slides import Cohort, Slide, draw_splits
from distmil.cohort.table import is_parquet, read_rows
from distmil.config.data import CohortConfig
from distmil.errors import ManifestError
from distmil.slides.file_version import same_files

logger = logging.getLogger(__name__)

MAX_LINES_SHOWN = 50

Row = tuple[int, Slide]
"""A slide and its line in the manifest."""


def read_cohort(config: CohortConfig, *, manifest: str | Path, needs_labels: bool, needs_splits: bool) -> Cohort:
    """Read and check a manifest, and draw splits by patient where it has none and they are needed.

    Raises:
        ManifestError: With every offending row and its line.
    """
    path = Path(manifest).expanduser().absolute()
    rows = read_rows(path)
    slides, problems = [], []
    for line, row in rows:
        slide, wrong = check_row(row, folder=path.parent, classes=config.classes, needs_labels=needs_labels)
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


def _check_together(rows: Sequence[tuple[int, Slide]]) -> list[tuple[int, str]]:
    """Find the faults between rows: duplicate ids, split patients, splits given for some only."""
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
    """Refuse one file in two splits: the model would be evaluated on what it was trained on."""
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


def _report(path: Path, problems: Sequence[tuple[int, str]]) -> str:
    word = "row" if is_parquet(path) else "line"
    rows = len({line for line, _ in problems})
    lines = [f"  {word} {line}: {text}" for line, text in sorted(problems)[:MAX_LINES_SHOWN]]
    if len(problems) > MAX_LINES_SHOWN:
        lines.append(f"  ... and {len(problems) - MAX_LINES_SHOWN} more")
    return "\n".join([f"{path}: {rows} {word}{'s' * (rows != 1)} cannot be used", *lines])
