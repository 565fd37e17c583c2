"""Describe what is wrong with a deployment file, by tables of rules and by JSON schemas."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema
from values import at, dotted, mapping, walk

LONGEST_IDLE_S = 3600
_IDLE_S = {"idle_timeout_minutes": 60, "idle_timeout_s": 1, "idleTimeoutSeconds": 1}
_PLACEHOLDER = re.compile(r"SET-ME|\bREGISTRY/|\bBUCKET\b")
_MAX_SHOWN = 120
Rule = tuple[str, tuple[Any, ...], str]
"""A dotted path, the values that may stand there (None: nothing), and what is expected, with the reason."""


@dataclass(frozen=True)
class Problem:
    """A value that is not as expected, at a dotted place of a file."""

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


def rule_problems(values: Any, rules: Iterable[Rule], place: str = "") -> Iterator[Problem]:
    """Yield the values that a table of rules does not allow."""
    for path, allowed, expected in rules:
        if (found := at(values, path)) not in allowed:
            yield Problem(f"{place}.{path}".lstrip("."), found, f"expected {expected}")


def schema_problems(error: jsonschema.ValidationError) -> Iterator[Problem]:
    """Yield a JSON schema's complaint, one problem for each unknown key with the key that was probably meant."""
    place, found, known = dotted(error.absolute_path), mapping(error.instance), mapping(error.schema, "properties")
    if error.validator != "additionalProperties" or not known:
        yield Problem(place, error.instance, f"the schema says: {_shorten(str(error.message))}")
        return
    for key in found.keys() - known.keys():
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
        yield Problem(f"{place}.{key}".lstrip("."), found[key], f"unknown key; {hint}")


def warnings(values: Any) -> Iterator[Problem]:
    """Yield what the user has to set, at the first place that has it, and what keeps nodes long after their work."""
    seen = set()
    for path, found in walk(values):
        if isinstance(found, str) and _PLACEHOLDER.search(found) and found not in seen:
            seen.add(found)
            yield Problem(dotted(path), found, "a placeholder; set it before you start nodes", is_error=False)
        unit = _IDLE_S.get(str(path[-1])) if path else None
        if unit and isinstance(found, int | float) and found * unit > LONGEST_IDLE_S:
            expected = "expected at most an hour: a node that has nothing to do costs until then"
            yield Problem(dotted(path), found, expected, is_error=False)


def count_problems(place: str, keys: tuple[str, str], fewest: Any, most: Any) -> Iterator[Problem]:
    """Yield whether the limits of a pool of workers contradict each other, or keep nodes that have nothing to do."""
    if not isinstance(fewest, int) or not isinstance(most, int):
        yield Problem(f"{place}.{keys[1]}", most, "expected a number of nodes")
    elif fewest > most:
        yield Problem(f"{place}.{keys[0]}", fewest, f"expected at most {keys[1]}, {most}")
    elif fewest:
        expected = (
            "expected 0: a pool grows with the work; nodes that are always there cost as long as the cluster is up"
        )
        yield Problem(f"{place}.{keys[0]}", fewest, expected, is_error=False)
