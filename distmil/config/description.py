"""The configuration in words: every key with its type, bounds, default and meaning, for help, errors and docs."""

import json
import re
import textwrap
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from distmil.config.root import Config

WIDTH = 79
"""Of the help's lines, but for those that state a type."""


def all_fields() -> list[tuple[str, str, FieldInfo]]:
    """List every key as (section, key, field)."""
    found = []
    for section, outer in Config.model_fields.items():
        assert outer.annotation is not None
        found += [(section, key, field) for key, field in outer.annotation.model_fields.items()]
    return found


def find_field(where: list[str]) -> FieldInfo | None:
    """Find the field of a key by its section and name; None if there is none."""
    return next((field for section, key, field in all_fields() if where[:2] == [section, key]), None)


def type_text(field: FieldInfo) -> str:
    """Describe a field's type and bounds, such as ``an integer >= 1 and <= 4096, or null``."""
    if choices := _choices(field.annotation):
        return " | ".join(choices)
    kind, *others = _alternatives(field.annotation)
    bounds = _bounds_text(field, is_list=get_origin(kind) is list)
    return _kind_text(kind) + bounds + (f"{',' if bounds else ''} or null" if others else "")


def _alternatives(annotation: Any) -> list[Any]:
    """List the members of a union; another type is its own only member."""
    return list(get_args(annotation)) if get_origin(annotation) in {Union, UnionType} else [annotation]


def _choices(annotation: Any) -> list[str]:
    """List the values of a field that takes a few words or true and false; none for other types."""
    found: list[str] = []
    for kind in _alternatives(annotation):
        if get_origin(kind) is Literal:
            found += get_args(kind)
        elif kind is bool:
            found += ["true", "false"]
        elif kind is type(None) and found:
            found.append("null")
    return found


def _words(field: FieldInfo) -> list[str]:
    """List the usual values of a field that takes others too; none for most fields."""
    extra = field.json_schema_extra
    words = extra.get("words", []) if isinstance(extra, dict) else []
    return [str(word) for word in words] if isinstance(words, list) else []


def _kind_text(kind: Any) -> str:
    words = {int: "an integer", float: "a number", str: "text", Any: "anything"}
    if kind in words:
        return words[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        return _kind_text(arguments[0])
    if get_origin(kind) is list:
        choices = get_args(arguments[0]) if get_origin(arguments[0]) is Literal else ()
        return f"a list of {' | '.join(choices)}" if choices else "a list"
    if get_origin(kind) is dict:
        return f"pairs of {_kind_text(arguments[0])}: {_kind_text(arguments[1])}"
    if type(None) in arguments:
        return " or ".join("null" if kind is type(None) else _kind_text(kind) for kind in arguments)
    return " | ".join(arguments)


def _bounds_text(field: FieldInfo, *, is_list: bool) -> str:
    """Describe the bounds of a field, such as `` >= 8 and <= 4096``."""

    def bound(name: str) -> Any:
        return next((getattr(mark, name) for mark in field.metadata if getattr(mark, name, None) is not None), None)

    if bound("pattern"):
        return " of 1 to 128 letters, digits, . _ -, without a leading dot"
    if bound("max_length") is not None:
        return f" of {bound('min_length')} to {bound('max_length')} {'texts' if is_list else 'characters'}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {bound(name)}" for name, sign in signs.items() if bound(name) is not None]
    return " " + " and ".join(bounds) if bounds else ""


@dataclass(frozen=True)
class Key:
    """One key of a section, in words."""

    name: str
    type: str
    default: str
    """As JSON."""
    meaning: str


def describe_section(name: str) -> tuple[str, list[Key]]:
    """Describe a section of the configuration: its sentence, and every key with type, bounds, default and meaning."""
    outer = Config.model_fields[name]
    assert outer.annotation is not None
    keys = [
        Key(key, type_text(field), json.dumps(field.get_default(call_default_factory=True)), field.description or "")
        for key, field in outer.annotation.model_fields.items()
    ]
    return (outer.annotation.__doc__ or "").strip(), keys


def key_choices() -> dict[str, list[str]]:
    """List every dotted key with the words it may have as its value; no words where any value fits its type."""
    return {f"{section}.{key}": _choices(field.annotation) or _words(field) for section, key, field in all_fields()}


def describe_keys(keys: Collection[str] | None = None) -> str:
    """Write the help text: every key, or those of a selection, with type, bounds, default and meaning."""
    lines: list[str] = []
    for name in Config.model_fields:
        sentence, described = describe_section(name)
        shown = [key for key in described if keys is None or f"{name}.{key.name}" in keys]
        if shown:
            lines += ["", _filled(f"{name}: {sentence}", "")]
        for key in shown:
            lines.append(f"  {name}.{key.name}  ({key.type}; default {key.default})")
            lines.append(_filled(key.meaning, 6 * " "))
    return "\n".join(lines).strip()


def describe_shortly(keys: Iterable[str]) -> str:
    """Write keys as they are set, with their defaults, and their choices or the first clause of their meaning."""
    lines = []
    for name in keys:
        field = find_field(name.split("."))
        assert field is not None
        default = field.get_default(call_default_factory=True)
        value = "..." if default is None or isinstance(default, dict) else json.dumps(default).strip('"')
        meaning = re.split(r"(?<=[.;]) ", " ".join((field.description or "").split()), maxsplit=1)[0].rstrip(".;")
        is_list = any(meaning.startswith(f"{choice}:") for choice in _choices(field.annotation))
        lines += [f"  {name}={value}", _filled(type_text(field) if is_list else meaning, 6 * " ")]
    return "\n".join(lines)


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
