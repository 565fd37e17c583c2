"""What is wrong with a deployment file, and what both kinds of files are asked for."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FROM_ZERO = "a pool grows with the work; nodes that are always there cost as long as the cluster is up"
LONGEST_IDLE_S = 3600
IDLE = "expected at most an hour: a node that has nothing to do costs until then"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PLACEHOLDER = re.compile(r"SET-ME|\bREGISTRY/|\bBUCKET\b")
_DOCKER_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)b?", re.IGNORECASE)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(k|Ki|[MGTPE]i?)?")
_POWERS = " kmgtpe"
_MAX_SHOWN = 120


@dataclass(frozen=True)
class Problem:
    """One thing that is not as expected, at a dotted place of a file."""

    place: str
    value: Any
    expected: str
    is_error: bool = True

    def line(self, file: str) -> str:
        """Return it as a line for the user."""
        place = self.place or "(the file)"
        found = f"{place} is missing" if self.value is None else f"{place} = {_shorten(repr(self.value))}"
        return f"{file}: {'error' if self.is_error else 'warning'}: {found}: {' '.join(self.expected.split())}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def mapping(values: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping at a path, empty if there is none: whether there must be one is the schema's affair."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def sequence(values: Any) -> Sequence[Any]:
    """Return a list, empty if it is none."""
    return values if isinstance(values, list) else []


def unknown_key(place: str, key: str, value: Any, allowed: Collection[str]) -> Problem:
    """Return the problem of a key that nobody reads, with the one that was probably meant."""
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(allowed))}"
    return Problem(f"{place}.{key}" if place else key, value, f"unknown key; {hint}")


def schema_problems(values: Any, schema: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield where values break a JSON schema."""
    for error in sorted(jsonschema.Draft7Validator(schema).iter_errors(values), key=lambda found: list(found.path)):
        yield from schema_problem(error)


def schema_problem(error: jsonschema.ValidationError) -> Iterator[Problem]:
    """Yield a schema's complaint, one for each key that is unknown or missing."""
    place, found, wanted = dotted(error.absolute_path), mapping(error.instance), sequence(error.validator_value)
    known = mapping(error.schema, "properties")
    if error.validator == "additionalProperties" and known:
        yield from (unknown_key(place, key, found[key], known) for key in found if key not in known)
    elif error.validator == "required":
        yield from (Problem(f"{place}.{key}".lstrip("."), None, "expected") for key in wanted if key not in found)
    else:
        yield Problem(place, error.instance, f"the schema says: {_shorten(str(error.message))}")


def dotted(path: Collection[Any]) -> str:
    """Return a path as one writes it: names with dots, positions in brackets."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def placeholders(values: Any) -> Iterator[Problem]:
    """Yield a warning for each value that the user is to set, at the first place that has it."""
    seen = set()
    for path, text in _texts(values, ()):
        if _PLACEHOLDER.search(text) and text not in seen:
            seen.add(text)
            yield Problem(dotted(path), text, "a placeholder; set it before you start nodes", is_error=False)


def _texts(values: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield the path and text of every string in nested values."""
    if isinstance(values, str):
        yield path, values
    items = values.items() if isinstance(values, Mapping) else enumerate(sequence(values))
    for key, value in items:
        yield from _texts(value, (*path, key))


def image_problems(images: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with the nodes' images, given by the places that name them."""
    first_place, first = next(iter(images.items()), ("", ""))
    seen = set()
    for place, image in images.items():
        if image != first:
            yield Problem(place, image, f"expected {first}, as in {first_place}: nodes of one cluster run the same")
        if image not in seen:
            seen.add(image)
            yield from _tag_problems(place, image)


def ray_of_image(image: str) -> str | None:
    """Return the version of Ray that an image's tag names, None if it names none."""
    name, _, tag = image.rpartition("/")[2].partition(":")
    found = re.search(r"ray-?(\d+\.\d+\.\d+)", tag)
    if found is None and name == "ray":
        found = re.match(r"(\d+\.\d+\.\d+)", tag)
    return found[1] if found else None


def _tag_problems(place: str, image: str) -> Iterator[Problem]:
    tag = image.rpartition("/")[2].partition(":")[2]
    version = ray_of_image(image)
    if tag in ("", "latest"):
        yield Problem(place, image, "expected a tag that stays: a node that joins later would run another image")
    elif version is None:
        yield Problem(place, image, f"names no Ray version to compare with ray{pinned_ray()}", is_error=False)
    elif problem := ray_problem(place, version, value=image):
        yield problem


def ray_problem(place: str, version: str, *, value: Any = None) -> Problem | None:
    """Return the problem of a Ray that is not the one the project pins."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or Version(version) not in pinned_ray():
        return Problem(place, value or version, f"expected ray{pinned_ray()}, as pyproject.toml pins it")
    return None


@cache
def pinned_ray() -> SpecifierSet:
    """Return the versions of Ray that the project allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(found.specifier for text in project["dependencies"] if (found := Requirement(text)).name == "ray")


def size_bytes(text: str) -> float | None:
    """Return a size as Docker and Ray write it (6g is 6 x 1024^3) in bytes, None if it is none."""
    found = _DOCKER_SIZE.fullmatch(text)
    return None if found is None else float(found[1]) * float(1024 ** _POWERS.index(found[2].lower() or " "))


def quantity_bytes(text: Any) -> float | None:
    """Return a size as Kubernetes writes it (6G is 6 x 1000^3, 6Gi 6 x 1024^3) in bytes, None if it is none."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        return None
    unit = found[2] or " "
    return float(found[1]) * float((1024 if unit.endswith("i") else 1000) ** _POWERS.index(unit[0].lower()))


def in_gib(size: float) -> str:
    """Return a size for people."""
    return f"{size / 2**30:.3g} GiB"
