"""One row of the manifest: its columns, and how the text of a cell becomes a value."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo

from distmil.cohort.faults import Fault
from distmil.cohort.slides import Slide
from distmil.slides.file_version import slide_in_folder, unusable

T = TypeVar("T")

SLIDE_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,128}")
_ROUNDED = re.compile(r"\d[.,]\d+[eE]\+?\d+")
"""An id that was a long number, as a spreadsheet writes it: 1.23E+05."""
_COMMA = re.compile(r"(\d*),(\d+)")
_EMPTY = frozenset({"nan", "na", "n/a", "#n/a", "none", "null", "<na>", "nat"})
"""Words that pandas, R and Excel write for an empty cell."""
_NO_EMPTY = frozenset({"slide_id", "slide_path", "patient_id"})
"""Columns where such a word may be a value."""
_FLAGS = dict.fromkeys(("true", "1", "yes", "y"), True) | dict.fromkeys(("false", "0", "no", "n"), False)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class RowRules:
    """What the cells of all rows are checked against."""

    folder: Path
    """Where relative paths start."""
    classes: Sequence[str]
    class_names: Mapping[str, str] = field(default_factory=dict)
    """Label as the manifest has it -> class."""
    needs_labels: bool = False
    is_guessed: bool = False
    """The file is not Unicode."""
    needs_slides: bool = True


def _rules(info: ValidationInfo) -> RowRules:
    rules: RowRules = info.context["rules"]  # type: ignore[index]
    return rules


# A ValueError of a cell has the reason, equal for all rows of one cause, and then the detail of this row.


def _slide_id(text: str) -> str:
    _check_id(text)
    if not SLIDE_ID.fullmatch(text):
        raise ValueError("expected 1 to 128 letters, digits, . _ -")
    return text


def _patient_id(text: str, info: ValidationInfo) -> str:
    _check_id(text)
    _check_letters(text, info)
    return text


def _site(text: str, info: ValidationInfo) -> str:
    _check_letters(text, info)
    return text


def _check_id(text: str) -> None:
    """Refuse texts that are no id. Raises: ValueError."""
    if text and is_empty_word(text):
        raise ValueError(
            "this word stands for an empty cell, not for an id; leave the cell empty where the patient is not known"
        )
    if _ROUNDED.fullmatch(text):
        raise ValueError("a number that a spreadsheet has rounded; format the column as text and write the ids again")


def _check_letters(text: str, info: ValidationInfo) -> None:
    """Refuse letters that may have been read wrongly. Raises: ValueError."""
    if _rules(info).is_guessed and not text.isascii():
        raise ValueError("letters beyond ASCII are a guess in this file")


def _slide(text: str, info: ValidationInfo) -> str:
    if not _rules(info).needs_slides:  # it may be on another machine than its features
        return str(_rules(info).folder / Path(text).expanduser()) if text and "://" not in text else ""
    if not text:
        raise ValueError("expected the slide's file")
    return _existing(text, info, may_be_folder=True)


def _file(text: str, info: ValidationInfo) -> str:
    return _existing(text, info, may_be_folder=False)


def _existing(text: str, info: ValidationInfo, *, may_be_folder: bool) -> str:
    """Find a file, without opening it; a slide may be the folder that holds it. Raises: ValueError."""
    if "://" in text:
        raise ValueError("slides and annotations are read through the file system; mount the store and give a path")
    try:
        path = _rules(info).folder / Path(text).expanduser()
        if not path.exists():
            raise ValueError("there is no such file", "" if Path(text).is_absolute() else f" ({path})")
        if may_be_folder and path.is_dir():
            path = slide_in_folder(path)
        refusal = unusable(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    if refusal:
        raise ValueError(refusal)
    return str(path)


def _class_index(text: str, info: ValidationInfo) -> int:
    rules = _rules(info)
    classes = list(rules.classes)
    number = text.removesuffix(".0")
    name = rules.class_names.get(text, rules.class_names.get(number, text))
    if name in classes:
        return classes.index(name)
    number = name.removesuffix(".0")
    if number.isdecimal() and int(number) < len(classes):
        return int(number)
    expected = f"expected {', '.join(classes)} or 0 to {len(classes) - 1} (cohort.classes)"
    if is_empty_word(text):
        raise ValueError(expected)
    known = {other.lower(): other for other in [*rules.class_names, *classes]}
    near = difflib.get_close_matches(text.lower(), known, n=1)
    raise ValueError(f"not a class; {expected}", f"; did you mean {known[near[0]]}?" if near else "")


def _mpp(text: str) -> float:
    comma = _COMMA.fullmatch(text)
    if comma and len(comma[2]) == 3 and comma[1].strip("0"):
        raise ValueError("the comma may be a decimal or a thousands separator; write the number with a point")
    try:
        value = float(text.replace(",", ".") if comma else text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e6:
        raise ValueError("expected um per pixel, a number above 0")
    return value


def _choice(values: Mapping[str, T], expected: str) -> BeforeValidator:
    """Make the validator that looks up a cell in any case."""

    def look_up(text: str) -> T:
        if text.lower() not in values:
            raise ValueError(f"expected {expected}")
        return values[text.lower()]

    return BeforeValidator(look_up)


class ManifestRow(BaseModel):
    """The columns of a manifest, under the names that ``Slide`` has for them. Empty cells are left out."""

    slide_id: Annotated[str, AfterValidator(_slide_id)] = ""
    path: Annotated[str, AfterValidator(_slide)] = Field("", alias="slide_path")
    label: Annotated[int | None, BeforeValidator(_class_index)] = None
    patient_id: Annotated[str, AfterValidator(_patient_id)] = ""
    split: Annotated[str | None, _choice(_SPLITS, "train, val or test")] = None
    mpp: Annotated[float | None, BeforeValidator(_mpp)] = None
    annotation_path: Annotated[str | None, BeforeValidator(_file)] = None
    annotation_complete: Annotated[bool, _choice(_FLAGS, "true or false")] = False
    tissue_path: Annotated[str | None, BeforeValidator(_file)] = None
    is_pseudo: Annotated[bool, _choice({"given": False, "pseudo": True}, "given or pseudo")] = Field(
        False, alias="label_source"
    )
    site: Annotated[str | None, AfterValidator(_site)] = None


COLUMNS = tuple(field.alias or name for name, field in ManifestRow.model_fields.items())


def check_row(line: int, cells: Mapping[str, str], rules: RowRules) -> tuple[Slide, list[Fault]]:
    """Turn a row into its slide, with defaults for wrong cells, and list what is wrong with them.

    Args:
        line: The row's number.
        cells: Its texts by column.
        rules: What they are checked against.
    """
    needed = {"slide_id", *(["slide_path"] if rules.needs_slides else []), *(["label"] if rules.needs_labels else [])}
    values = {column: "" if _is_empty(column, text, rules) else text for column, text in cells.items()}
    texts = {column: text for column in COLUMNS if (text := values.get(column, "")) or column in needed}
    wrong: dict[str, ValueError] = {}
    try:
        row = ManifestRow.model_validate(texts, context={"rules": rules})
    except ValidationError as error:
        wrong = {str(fault["loc"][0]): fault["ctx"]["error"] for fault in error.errors()}
        right = {column: text for column, text in texts.items() if column not in wrong}
        row = ManifestRow.model_validate(right, context={"rules": rules})
    slide_id = texts["slide_id"]
    slide = Slide(**row.model_dump() | {"slide_id": slide_id, "patient_id": row.patient_id or slide_id})
    faults = []
    for column, refusal in wrong.items():
        reason, *detail = refusal.args
        text = cells.get(column, "")
        value = f" {text!r}" if text else ""
        state = f"{column}{value}{'' if texts.get(column) else ' is empty'}"
        faults.append(Fault(line, f"{state}: {reason}{''.join(detail)}", column, f"{column}: {reason}"))
    return slide, faults


def is_empty_word(text: str) -> bool:
    """Test whether a cell holds nothing, or a word for it."""
    return not text or text.lower() in _EMPTY


def _is_empty(column: str, text: str, rules: RowRules) -> bool:
    """Test whether a cell of a column means an empty one."""
    if column in _NO_EMPTY or not is_empty_word(text):
        return False
    return column != "label" or text not in {*rules.classes, *rules.class_names}
