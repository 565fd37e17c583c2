"""One row of the manifest: its columns, and how the text of a cell becomes a value."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo

from distmil.cohort.slides import SPLITS, Slide
from distmil.slides.file_version import slide_in_folder, unusable

T = TypeVar("T")

_SLIDE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FLAGS = dict.fromkeys(("true", "1", "yes", "y"), True) | dict.fromkeys(("false", "0", "no", "n"), False)


def _slide_id(text: str) -> str:
    if not _SLIDE_ID.fullmatch(text) or not text.strip("."):
        raise ValueError("expected 1 to 128 letters, digits, . _ -")
    return text


def _slide(text: str, info: ValidationInfo) -> str:
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
        path: Path = info.context["folder"] / Path(text).expanduser()  # type: ignore[index]
        if not path.exists():
            where = "" if Path(text).is_absolute() else f" ({path})"
            raise ValueError(f"there is no such file{where}")
        if may_be_folder and path.is_dir():
            path = slide_in_folder(path)
        refusal = unusable(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    if refusal:
        raise ValueError(refusal)
    return str(path)


def _class_index(text: str, info: ValidationInfo) -> int:
    classes: Sequence[str] = info.context["classes"]  # type: ignore[index]
    if not text:
        raise ValueError(f"expected one of {', '.join(classes)}")
    if text in classes:
        return list(classes).index(text)
    number = text.removesuffix(".0")
    if number.isdecimal() and int(number) < len(classes):
        return int(number)
    near = difflib.get_close_matches(text.lower(), [name.lower() for name in classes], n=1)
    hint = f"; did you mean {next(name for name in classes if name.lower() == near[0])}?" if near else ""
    raise ValueError(f"not a class; expected {', '.join(classes)} or 0 to {len(classes) - 1} (cohort.classes){hint}")


def _mpp(text: str) -> float:
    try:
        value = float(text)
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
    patient_id: str = ""
    split: Annotated[str | None, _choice(dict(zip(SPLITS, SPLITS, strict=True)), "train, val or test")] = None
    mpp: Annotated[float | None, BeforeValidator(_mpp)] = None
    annotation_path: Annotated[str | None, BeforeValidator(_file)] = None
    annotation_complete: Annotated[bool, _choice(_FLAGS, "true or false")] = False
    tissue_path: Annotated[str | None, BeforeValidator(_file)] = None
    is_pseudo: Annotated[bool, _choice({"given": False, "pseudo": True}, "given or pseudo")] = Field(
        False, alias="label_source"
    )
    site: str | None = None


COLUMNS = tuple(field.alias or name for name, field in ManifestRow.model_fields.items())


def check_row(
    cells: Mapping[str, str], *, folder: Path, classes: Sequence[str], needs_labels: bool
) -> tuple[Slide, list[str]]:
    """Turn a row into its slide, with defaults for wrong cells, and list what is wrong with them."""
    context = {"folder": folder, "classes": classes}
    needed = {"slide_id", "slide_path", *(["label"] if needs_labels else [])}
    texts = {column: text for column in COLUMNS if (text := cells.get(column, "")) or column in needed}
    wrong: dict[str, str] = {}
    try:
        row = ManifestRow.model_validate(texts, context=context)
    except ValidationError as error:
        wrong = {str(fault["loc"][0]): str(fault["ctx"]["error"]) for fault in error.errors()}
        right = {column: text for column, text in texts.items() if column not in wrong}
        row = ManifestRow.model_validate(right, context=context)
    slide_id = texts["slide_id"]
    slide = Slide(**row.model_dump() | {"slide_id": slide_id, "patient_id": row.patient_id or slide_id})
    states = {column: f" {texts[column]!r}" if texts[column] else " is empty" for column in wrong}
    return slide, [f"{column}{states[column]}: {reason}" for column, reason in wrong.items()]
