"""A table of labelled patches: CSV, TSV or semicolons, with x, y, an edge and a label.

x and y are the patch's left top corner in level-0 pixels. A label is a class's name, or its index in
``cohort.classes``; a patch without a label is unknown. A table with a column ``slide_id`` may hold many slides.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from distmil.annotations.outlines import Outlines, index_group, rectangle, to_points
from distmil.annotations.regions import IGNORE
from distmil.annotations.slide_facts import SlideFacts
from distmil.errors import AnnotationError

NAME = "a table of labelled patches (CSV)"
_COLUMNS = {
    "x": ("x", "left", "x_min", "xmin", "coord_x"),
    "y": ("y", "top", "y_min", "ymin", "coord_y"),
    "label": ("label", "class", "class_name", "group"),
    "width": ("extent_px", "width", "w", "size", "patch_size", "edge_px"),
    "height": ("height", "h"),
    "slide": ("slide_id", "slide", "slide_name"),
}
_UNKNOWN = {"", "nan", "null", "none", "-1", "unknown"}


def matches(text: str) -> bool:
    """Say whether the first line names x, y and a label."""
    found = _columns(text)[0]
    return {"x", "y", "label"} <= set(found)


def read(text: str, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the patches of the slide as outlines by label. Raises: AnnotationError."""
    columns, separator = _columns(text)
    if "width" not in columns:
        raise AnnotationError(
            f"the annotation: the table has no column with the patches' edge in level-0 pixels; expected one of "
            f"{', '.join(_COLUMNS['width'])}"
        )
    outlines.writer = "patch table"
    keys = {key for name in slide.names for key in (name, PurePath(name).stem)}
    is_of_many, num_rows = "slide" in columns and bool(keys), 0
    for number, row in enumerate(csv.DictReader(io.StringIO(text.lstrip("\ufeff")), delimiter=separator), start=2):
        if is_of_many and (row[columns["slide"]] or "") not in keys:
            continue
        num_rows += 1
        label = (row[columns["label"]] or "").strip()
        if label.casefold() in _UNKNOWN:
            label = str(IGNORE)
        is_index = label.removeprefix("-").isdecimal()
        outlines.add(index_group(int(label)) if is_index else label, [rectangle(_corners(row, columns, number))])
    if is_of_many and not num_rows:
        raise AnnotationError("the annotation: no row of the table has the slide's id or its file's name as slide_id")


def _columns(text: str) -> tuple[Mapping[str, str], str]:
    """Find the columns by their names, and the sign between them."""
    first = text[:65536].lstrip("\ufeff").partition("\n")[0].strip()
    separator = max(",;\t", key=first.count)
    names = next(csv.reader([first], delimiter=separator), [])
    by_key = {name.strip().casefold(): name for name in reversed(names)}
    found = {wanted: next((by_key[key] for key in keys if key in by_key), None) for wanted, keys in _COLUMNS.items()}
    return {wanted: name for wanted, name in found.items() if name is not None}, separator


def _corners(row: Mapping[str, str | None], columns: Mapping[str, str], number: int) -> NDArray[np.float64]:
    wanted = ("x", "y", "width", "height" if "height" in columns else "width")
    try:
        x, y, width, height = (float(row[columns[name]] or "") for name in wanted)
    except (TypeError, ValueError):
        raise AnnotationError(
            f"the annotation: line {number} of the table has no number as x, y or edge; correct it"
        ) from None
    if not (width > 0 and height > 0):
        raise AnnotationError(f"the annotation: line {number} of the table has an edge of {min(width, height):g} px")
    return to_points([(x, y), (x + width, y + height)])
