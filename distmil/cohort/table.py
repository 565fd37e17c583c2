"""The manifest as a table of text: CSV in its dialects, or Parquet."""

import csv
import difflib
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distmil.cohort.row import COLUMNS
from distmil.errors import ManifestError

logger = logging.getLogger(__name__)

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
"""What other tools call a column. Such a name is refused: left out in silence it may split a patient."""
_NEAR = 0.8


def is_parquet(path: Path) -> bool:
    """Test a manifest's kind by its suffix."""
    return path.suffix.lower() in {".parquet", ".pq"}


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read (line, column -> text) of every row. Raises: ManifestError."""
    if not path.is_file():
        raise ManifestError(f"there is no manifest at {path}; set cohort.manifest to a CSV or Parquet file")
    rows = _read_parquet(path) if is_parquet(path) else _read_csv(path)
    if not rows:
        raise ManifestError(f"{path}: the manifest has no rows")
    return rows


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    names = _columns(path, next(reader, []))
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ManifestError(f"{path}: line {reader.line_num} is not CSV ({error}); is a quote left open?") from error
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
    """Test whether a column holds text in any coding, or only nulls."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Resolve the aliases of a header. Raises: ManifestError if a needed column is missing or doubled."""
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
    """Find the column that another name may stand for."""
    plain = re.sub(r"[^a-z0-9]+", "_", name).strip("_")
    if plain in SYNONYMS or plain in COLUMNS:
        return SYNONYMS.get(plain, plain)
    return next(iter(difflib.get_close_matches(plain, COLUMNS, n=1, cutoff=_NEAR)), None)
