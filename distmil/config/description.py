"""The configuration in words: every key with its type, bounds, default and meaning, for help, errors and docs."""

import json
import textwrap
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from distmil.config.root import Config


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


def _kind_text(kind: Any) -> str:
    words = {int: "an integer", float: "a number", str: "text", Any: "anything"}
    if kind in words:
        return words[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        return _kind_text(arguments[0])
    if get_origin(kind) is list:
        return "a list"
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
    return {f"{section}.{key}": _choices(field.annotation) for section, key, field in all_fields()}


def describe_keys() -> str:
    """Write the help text: every key with type, bounds, default and meaning."""
    lines: list[str] = []
    for name in Config.model_fields:
        sentence, keys = describe_section(name)
        lines.append(f"\n{name}: {sentence}")
        for key in keys:
            lines.append(f"  {name}.{key.name}  ({key.type}; default {key.default})")
            lines.append(textwrap.indent(key.meaning, 6 * " "))
    return "\n".join(lines).strip()
