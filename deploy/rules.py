"""Describe what is wrong with a deployment file, by tables of rules and by schemas.

Rules look values up by their place, such as ``docker.run_options[2]``. A value of another form than expected does not
have that place; the schemas report the form.
"""

import difflib
import re
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import jsonschema
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OPEN_PORT = "the job port runs code for whoever reaches it"
STARVES = "work on the head can starve what holds the cluster together"
_MAX_SHOWN = 120

Rule = tuple[str, Container[Any], str]
"""A place, the values that may stand there (None: nothing), and what is expected, with the reason."""
TextRule = tuple[str, Container[str], str]
"""A pattern in a text, the values that its group may have, and what is expected, with the reason."""
SETS_MODE = r"(?<![\w$])(?<!\${)RAY_AUTH_MODE['\"]?(?:=|:\s*)['\"]?([^\s'\";&|,}]*)['\"]?"
_UNSETS_MODE = r"(?:\bunset\s+(?:-v\s+)?|\s-u\s*|--unset[=\s])['\"]?(RAY_AUTH_MODE)\b"
_SETS_TOKEN = r"(?<!\w)(RAY_AUTH_TOKEN)(?=['\"]?(?:=|:\s*)['\"]?[^\s'\"$`])"  # noqa: S105 (ends before the token)
AUTHENTICATION = (
    (SETS_MODE, ("token",), f"expected RAY_AUTH_MODE=token, as everywhere: {OPEN_PORT}"),
    (_UNSETS_MODE, (), f"expected RAY_AUTH_MODE=token, as everywhere: {OPEN_PORT}"),
    (_SETS_TOKEN, (), "expected the token in its file or secret alone: here others can read it"),
)
"""A single process that starts Ray with authentication off is enough. So every text of a file is searched."""


@dataclass(frozen=True)
class Problem:
    """A value that is not as expected, at a place of a file."""

    place: str
    value: Any
    expected: str
    is_error: bool = True

    def line(self, file: str) -> str:
        """Format the problem as a line for the user."""
        place = self.place or "(the file)"
        found = f"{place} is missing" if self.value is None else f"{place} = {_shorten(repr(self.value))}"
        return f"{file}: {'error' if self.is_error else 'warning'}: {found}: {self.expected}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def by_place(content: Any, place: str = "") -> dict[str, Any]:
    """List every value of a file by its place, the mappings and lists included."""
    values = {place: content}
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        values |= by_place(value, _inside(place, key))
    return values


def _inside(place: str, key: Any) -> str:
    return f"{place}[{key}]" if isinstance(key, int) else f"{place}.{key}".lstrip(".")


def texts(values: Mapping[str, Any], place: str, key: str = "") -> list[str]:
    """List the texts in a list, or those that its mappings have under a key such as ``.name``."""
    return [str(text) for where, text in values.items() if re.fullmatch(rf"{re.escape(place)}\[\d+\]{key}", where)]


def rule_problems(values: Mapping[str, Any], rules: Iterable[Rule], place: str = "") -> Iterator[Problem]:
    """Yield the values that a table of rules does not allow; the places of the rules begin at the given one."""
    for path, allowed, expected in rules:
        where = _inside(place, path)
        if (found := values.get(where)) not in allowed:
            yield Problem(where, found, f"expected {expected}")


def text_problems(values: Mapping[str, Any], rules: Iterable[TextRule]) -> Iterator[Problem]:
    """Yield what a table of rules does not allow in any text; a container's variable counts as NAME=VALUE."""
    for place, value in values.items():
        text = value if isinstance(value, str) else ""
        if isinstance(value, Mapping) and "name" in value:
            text = f"{value['name']}={value.get('value', '$valueFrom')}"
        for pattern, allowed, expected in rules:
            for found in re.finditer(pattern, text):
                if found[1] not in allowed:
                    yield Problem(place, found[0].strip(), expected)


def schema_problems(error: jsonschema.ValidationError) -> Iterator[Problem]:
    """Yield a JSON schema's complaint, one problem for each unknown key with the key that was probably meant."""
    where = reduce(_inside, error.absolute_path, "")
    known = error.schema.get("properties") if isinstance(error.schema, Mapping) else None
    if error.validator != "additionalProperties" or not known:
        yield Problem(where, error.instance, f"the schema says: {_shorten(str(error.message))}")
        return
    for key in error.instance.keys() - known.keys():
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
        yield Problem(_inside(where, key), error.instance[key], f"unknown key; {hint}")


def image_problems(values: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Yield what is wrong with the image at a place, and what names another image or another Ray."""
    image = values.get(place)
    name = re.search(r"(?<![a-z])ray[-:]?(\d+\.\d+\.\d+)", str(image).rpartition("/")[2])
    version = name[1] if name else None
    for other, value in values.items():
        if re.search(r"\.(head_|worker_)?image$", other) and isinstance(value, str) and value != image:
            yield Problem(other, value, f"expected {image}, as in {place}: nodes of one cluster run one image")
        if other.endswith(".rayVersion") and version not in (None, value):
            yield Problem(other, value, f"expected {version}, as in {place}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = next(found.specifier for text in project["dependencies"] if (found := Requirement(text)).name == "ray")
    if str(image).rpartition("/")[2].partition(":")[2] in ("", "latest"):
        expected = "expected deploy/Dockerfile's image by a tag that stays: a later node would run another one"
        yield Problem(place, image, expected)
    elif version is None:
        yield Problem(place, image, f"names no Ray version to compare with ray{pinned}", is_error=False)
    elif version not in pinned:
        yield Problem(place, image, f"expected ray{pinned}, as pyproject.toml pins it")
