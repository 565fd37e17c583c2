"""A manifest with other annotations: what was drawn in the viewer, as the next training reads it."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distmil.cohort.columns import find_columns
from distmil.cohort.kinds import is_slide
from distmil.cohort.listing import list_slides
from distmil.cohort.row import is_empty_word
from distmil.cohort.table import Table, read_table
from distmil.config.data import CohortConfig
from distmil.errors import ConfigError

_FILES = ("slide_path", "annotation_path", "tissue_path")
_DRAWN = ("annotation_path", "annotation_complete")


@dataclass(frozen=True)
class Drawn:
    """What takes the place of a slide's annotation."""

    path: str | None
    """The file; None: the slide has no outline any more."""
    is_complete: bool = False
    """Every target of the slide is outlined."""


def check_annotatable(config: CohortConfig) -> None:
    """Refuse columns that leave no place for annotations. Raises: ConfigError."""
    for column in _DRAWN:
        if column in config.columns and config.columns[column] is None:
            raise ConfigError(f"cohort.columns: {column} = null, so drawn outlines would never be read; leave it out")


def annotated_manifest(config: CohortConfig, manifest: str | Path, drawn: Mapping[str, Drawn]) -> bytes:
    """Write a manifest as CSV with the annotations of some slides replaced.

    Every column keeps its name, so that ``cohort.columns`` reads it as before. Files are absolute.

    Args:
        config: Names of the columns.
        manifest: The CSV or Parquet file, the slide or the folder of slides.
        drawn: What was drawn, by slide.

    Raises:
        ConfigError: If ``cohort.columns`` leaves no place for annotations.
        ManifestError: If the manifest cannot be read.
    """
    check_annotatable(config)
    path = Path(manifest).expanduser().absolute()
    is_listed = path.is_dir() or is_slide(path)
    table = list_slides(path) if is_listed else read_table(path)
    places = find_columns(path, table.header, config.columns, needs_labels=False, needs_slides=False)
    header = [*table.header, *(column for column in _DRAWN if column not in places)]
    for column in _DRAWN:
        places.setdefault(column, header.index(column))
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(_rows(table, path.parent, places, len(header), drawn))
    return sink.getvalue().encode()


def _rows(
    table: Table, folder: Path, places: Mapping[str, int], width: int, drawn: Mapping[str, Drawn]
) -> Iterator[Sequence[str]]:
    """Yield the rows with absolute files and what was drawn."""
    files = [places[column] for column in _FILES if column in places]
    for _, cells in table.rows:
        row = [*cells, *[""] * (width - len(cells))]
        for i in files:
            if not is_empty_word(row[i]) and "://" not in row[i]:
                row[i] = str(folder / Path(row[i]).expanduser())
        if found := drawn.get(row[places["slide_id"]]):
            row[places["annotation_path"]] = found.path or ""
            row[places["annotation_complete"]] = str(found.is_complete).lower()
        yield row
