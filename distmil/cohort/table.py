"""The manifest as a table of text: CSV in its dialects, or Parquet."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distmil.cohort.kinds import check_text, is_parquet
from distmil.cohort.row import COLUMNS
from distmil.cohort.text_file import decode
from distmil.errors import ManifestError

DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """The rows of a manifest as text, without blanks around the cells."""

    header: Sequence[str]
    """Column names as the file spells them; empty for a column without a name."""
    rows: Sequence[tuple[int, Sequence[str]]]
    """Line and cells of every row; as many cells as the header has."""
    unit: str = "line"
    """What the number of a row counts."""
    is_guessed: bool = False
    """The file is not Unicode: letters beyond ASCII are a guess."""
    not_text: Mapping[int, str] = field(default_factory=dict)
    """Type of each column of Parquet that is not text."""


def read_table(path: Path) -> Table:
    """Read a manifest. Raises: ManifestError if it cannot be read as a table, or has no rows."""
    if is_parquet(path):
        table = _read_parquet(path)
    else:
        check_text(path)
        table = _read_csv(path)
    if any(table.header) and not table.rows:
        raise ManifestError(f"{path}: the manifest has no rows")
    return table


def _read_csv(path: Path) -> Table:
    try:
        text, is_guessed = decode(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeError as error:
        raise ManifestError(
            f"{path}: the text is neither UTF-8 nor UTF-16 nor Windows-1252 ({error}); save it as CSV (UTF-8)"
        ) from error
    text = io.StringIO(text, newline=None).read()
    skipped, delimiter = 0, _stated_delimiter(text)
    if delimiter:
        skipped, text = 1, text.partition("\n")[2]
    delimiter = delimiter or max(DELIMITERS, key=lambda mark: _fit(text, mark))
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num + skipped, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        line = reader.line_num + skipped
        raise ManifestError(f"{path}: line {line} is not CSV ({error}); is a quote left open?") from error
    return Table(header, _even(path, header, [row for row in lines if any(row[1])]), is_guessed=is_guessed)


def _stated_delimiter(text: str) -> str:
    """Read the delimiter off a first line such as ``sep=;``, which is for Excel; empty for any other line."""
    first = text.partition("\n")[0]
    return first[4:] if first[:4].lower() == "sep=" and first[4:] in tuple(DELIMITERS) else ""


def _fit(text: str, delimiter: str) -> tuple[int, int]:
    """Count the columns that a delimiter makes of the header: those with a name of distmil, and all."""
    try:
        names = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    except csv.Error:
        return 0, 0
    return sum(name.strip().lower() in COLUMNS for name in names), len(names)


def _even(
    path: Path, header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]]
) -> list[tuple[int, Sequence[str]]]:
    """Give every row the cells of the header. Columns after the last name may be missing, or there and empty.

    Raises:
        ManifestError: If a row lacks cells, or has more that are not empty.
    """
    width = max((i + 1 for i, name in enumerate(header) if name), default=0)
    uneven = [(line, cells) for line, cells in lines if len(cells) < width or any(cells[len(header) :])]
    if uneven:
        line, cells = uneven[0]
        more = f" (and {len(uneven) - 1} more)" if len(uneven) > 1 else ""
        hint = '; a cell that holds the delimiter needs quotes, such as "0,25"' if len(cells) > width else ""
        raise ManifestError(f"{path}: line {line}{more} has {len(cells)} cells, the header has {width}{hint}")
    blanks = [""] * len(header)
    return [(line, [*cells, *blanks][: len(header)]) for line, cells in lines]


def _read_parquet(path: Path) -> Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read as Parquet ({error})") from error
    columns = [column.to_pylist() for column in table.columns]
    cells = [["" if value is None else str(value).strip() for value in row] for row in zip(*columns, strict=True)]
    return Table(
        [name.strip() for name in table.column_names],
        list(enumerate(cells, start=1)),
        unit="row",
        not_text={i: str(kind) for i, kind in enumerate(table.schema.types) if not _is_text(kind)},
    )


def _is_text(kind: pa.DataType) -> bool:
    """Test whether a column holds text in any coding, or only nulls."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)
