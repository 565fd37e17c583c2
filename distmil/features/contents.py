"""A file of features as its tool states it, before anything of it is believed.

N patches of the slide, E numbers a patch.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from distmil.errors import UnreadableSlide


class Rows(Protocol):
    """A matrix of which rows can be read: an array, or a data set in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class Header:
    """What a file says of its patches without their embeddings; None where it does not say it."""

    layout: str
    num_patches: int
    dimension: int
    encoder: str | None = None
    patch_px: int | None = None
    """Patch edge in pixels as the tool cut it."""
    mpp: float | None = None
    """Um per pixel of these patches, as the tool asked for it: the same for all slides."""
    extent: float | None = None
    """Patch edge, in the unit of the coordinates."""
    step: float | None = None
    """Distance of neighbours, in the unit of the coordinates."""
    unit: Literal["px", "um"] = "px"
    """Of the coordinates: level-0 pixels, or um from the slide's corner."""
    size: tuple[int, int] | None = None
    """Slide (width, height) in level-0 pixels."""
    slide_mpp: float | None = None
    """Um per level-0 pixel."""


@dataclass(frozen=True)
class Contents:
    """A file that is open: its header, where the patches are, and their embeddings."""

    header: Header
    places_N2: NDArray[Any]
    """(x, y) of each patch's top-left corner, in the unit that the header names."""
    embedding_NE: Rows


def odd(text: str) -> UnreadableSlide:
    """Make the error for a file of features that cannot be used."""
    return UnreadableSlide(f"the features: {text}")


def checked_contents(header: Header, places: Any, features: Any, *, names: tuple[str, str]) -> Contents:
    """Compare the shapes of coordinates and features, and complete the header by them.

    Args:
        header: Without the counts.
        places: Coordinates as stored.
        features: Features as stored: an array, or a data set.
        names: What the file calls the two.

    Raises:
        UnreadableSlide: If they are not N x 2 and N x E.
    """
    where, what = names
    shape, found = tuple(features.shape), np.asarray(places)
    is_one_of_many = len(shape) == 2 and shape[0] == 1 and found.ndim == 2 and len(found) > 1
    if is_one_of_many or (len(shape) == 1 and shape[0] > 0):
        raise odd(
            f"{what} is one vector of width {shape[-1]}, for the whole slide; distmil needs one for each patch: give "
            "the folder of the patches' features"
        )
    if shape == (0,) or shape[:1] == (0,):
        return Contents(replace(header, num_patches=0), np.zeros((0, 2)), np.zeros((0, 0), np.float16))
    if len(shape) != 2:
        raise odd(f"{what} has the shape {shape}; expected patches x width")
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iuf":
        raise odd(f"{where} has the shape {found.shape} of {found.dtype}; expected numbers, patches x 2")
    if len(found) != shape[0]:
        raise odd(
            f"{shape[0]} embeddings, but {len(found)} coordinates; the file is half written, or not of one tiling"
        )
    return Contents(replace(header, num_patches=shape[0], dimension=shape[1]), found, features)


def number(values: Mapping[str, Any], name: str) -> float | None:
    """Read a number of a file's attributes; None where it is absent, or the word None. Raises: UnreadableSlide."""
    value = values.get(name)
    if value is None or text_of(value) in {"None", ""}:
        return None
    with contextlib.suppress(TypeError, ValueError):
        found = float(np.asarray(value).reshape(-1)[0]) if not isinstance(value, str | bytes) else float(value)
        if math.isfinite(found) and found >= 0:
            return found
    raise odd(f"its attribute {name} is {str(value)[:60]!r}; expected a number")


def positive(values: Mapping[str, Any], name: str) -> float | None:
    """Read a number above 0; None where it is absent. Raises: UnreadableSlide."""
    found = number(values, name)
    if found == 0:
        raise odd(f"its attribute {name} is 0; expected a number above 0")
    return found


def whole(values: Mapping[str, Any], name: str) -> int | None:
    """Read a positive whole number; None where it is absent. Raises: UnreadableSlide."""
    found = positive(values, name)
    if found is not None and found != round(found):
        raise odd(f"its attribute {name} is {found:g}; expected a whole number")
    return None if found is None else round(found)


def text_of(value: Any) -> str | None:
    """Read a text of a file's attributes; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else None


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object. Raises: UnreadableSlide."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise odd(f"its {name} is not JSON") from error
    if not isinstance(found, dict):
        raise odd(f"its {name} holds no names and values")
    return found
