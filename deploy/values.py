"""Read nested values that may have any form: the schemas report a wrong form."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def at(values: Any, path: str) -> Any:
    """Look up a dotted path, with positions as numbers; None if it does not exist."""
    for key in path.split("."):
        if isinstance(values, Mapping):
            values = values.get(key)
        else:
            values = next(iter(sequence(values)[int(key) :]), None) if key.isdigit() else None
    return values


def mapping(values: Any, path: str | None = None) -> Mapping[str, Any]:
    """Look up a mapping; an empty one if there is none."""
    found = values if path is None else at(values, path)
    return found if isinstance(found, Mapping) else {}


def sequence(values: Any) -> Sequence[Any]:
    """Pass a list through; an empty one for any other value."""
    return values if isinstance(values, list) else []


def walk(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and the value of everything in nested values."""
    yield path, values
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(sequence(values)):
        yield from walk(value, (*path, key))


def dotted(path: Iterable[Any]) -> str:
    """Write a path with dots before names and brackets around positions."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
