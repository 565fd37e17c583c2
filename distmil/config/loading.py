"""Reading a job's configuration from one YAML file and dotted overrides, and explaining its errors.

All unknown keys, wrong types and values out of range are refused together, each with the value and what was expected.
"""

import difflib
import json
import re
import textwrap
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distmil.config.description import all_fields, find_field, type_text
from distmil.config.root import Config
from distmil.config.section import has_mark
from distmil.errors import ConfigError
from distmil.storage.files import read_file


def per_job_keys() -> set[str]:
    """Return the dotted keys that may differ from a bundle's when it is used."""
    return {f"{section}.{key}" for section, key, field in all_fields() if has_mark(field, "per_job", default=False)}


MAX_NODES, MAX_DEPTH = 20_000, 50
"""The most values of a configuration, each alias counted with all its values, and the deepest nesting."""
_MAX_SHOWN = 200
_MAX_LINES = 50
_TYPE_STEP = re.compile(r"bool|literal\[.*\]|\[key\]")
"""Steps of pydantic's path to a value that name a type, not a key."""

_JOIN = (
    "a manifest is one table with a row a slide; join the two in Python: import pandas as p; p.read_csv('SLIDES.csv', "
    "dtype=str).merge(p.read_csv('CLINI.csv', dtype=str), on='PATIENT').to_csv('manifest.csv', index=False)"
)
_OF_OTHER_TOOLS = {
    **dict.fromkeys(("cohort.clini_table", "cohort.slide_table"), _JOIN),
    **dict.fromkeys(("cohort.label_column", "cohort.ground_truth_label"), "set cohort.columns={label: NAME}"),
    **dict.fromkeys(("cohort.id_column", "cohort.patient_column"), "set cohort.columns={patient_id: NAME}"),
}
"""What to do in place of a key that other tools have."""


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys, of bounded size and depth, and with 1e-3 read as a number as YAML 1.2 does."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and count its values. Raises: ConfigError if it is too large or too deep."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line, is_alias = event.start_mark.line + 1, isinstance(event, yaml.AliasEvent)
        if self._depth == MAX_DEPTH:
            raise ConfigError(f"line {line}: values are nested more than {MAX_DEPTH} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise ConfigError(f"line {line}: an alias is inside the value that it refers to")
        if node is not None and not is_alias:
            self._sizes[node] = 1 + sum(self._sizes[child] for child in _children(node))
            if self._sizes[node] > MAX_NODES:
                raise ConfigError(f"line {line}: more than {MAX_NODES} values, each alias counted with all its values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = None if key_node.tag == merge else self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key_node.tag != merge:
                if key in seen:
                    raise ConfigError(f"line {node.start_mark.line + 1}: key {_shown(key)} is given twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


class _Dumper(yaml.SafeDumper):
    """YAML that puts a text in quotes where the loader would read it as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def parse_yaml(text: str) -> Any:
    """Parse YAML text. Raises: ConfigError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        hint = "; lines of one section begin in one column" if mark and mark.line else ""
        raise ConfigError(f"not valid YAML{place}: {_cut(str(error.problem))}{hint}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date such as 2026-13-01 is a ValueError
        raise ConfigError(f"not valid YAML: {_cut(str(error))}") from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return nested values as YAML text."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def annotated_yaml(config: Config, *, title: str) -> str:
    """Write a whole configuration as YAML; a comment above each value that is not the default names the default."""
    defaults = Config().flat()
    lines = [f"# {title}; a comment above a value: it is not the default"]
    for section, values in config.model_dump().items():
        lines.append(f"{section}:")
        for key, value in values.items():
            default = defaults[f"{section}.{key}"]
            lines += [f"  # default: {json.dumps(default, ensure_ascii=False)}"] * (value != default)
            lines.append(textwrap.indent(to_yaml({key: value}).rstrip(), "  "))
    return "\n".join(lines) + "\n"


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply dotted overrides, and validate.

    Args:
        path: The file, or its URI on an object store.
        overrides: Texts such as ``section.key=value``.

    Raises:
        ConfigError: With every offending key, its value and what was expected.
        StorageError: If an object store cannot be asked.
    """
    values: Any = {}
    if path is not None:
        text = _read_text(path)
        try:
            values = parse_yaml(text) or {}
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `tiling:`, got {type(values).__name__}")
    for override in overrides:
        _set(values, override)
    return build_config(values)


def _read_text(path: str | Path) -> str:
    try:
        is_far = isinstance(path, str) and path.startswith(("s3://", "gs://"))
        data = read_file(str(path), key="--config") if is_far else Path(path).read_bytes()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from error


def build_config(values: Mapping[str, Any]) -> Config:
    """Validate nested values as a Config; an empty section gets its defaults. Raises: ConfigError."""
    try:
        return Config.model_validate({name: {} if section is None else section for name, section in values.items()})
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [_explain(dict(item)) for item in found[:_MAX_LINES]]
        more = [f"... and {len(found) - _MAX_LINES} more"] if len(found) > _MAX_LINES else []
        raise ConfigError("\n".join([*dict.fromkeys(lines), *more])) from None


def _set(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        right = [f"{s}.{k}={text or 'VALUE'}" for s, k, _ in all_fields() if keys in ([k], [s, k])]
        meant = f"; did you mean {' or '.join(right[:3])}?" if right else ""
        raise ConfigError(f"override {_shown(override)}: expected section.key=value{meant}")
    node = values
    for key in keys[:-1]:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {_shown(override)}: {key} is a value, not a section")
        node = child
    try:
        node[keys[-1]] = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"override {_shown(override)}: {error}") from error


# --- explaining --------------------------------------------------------------------------------------------------


def _explain(item: dict[str, Any]) -> str:
    """Explain a validation error in one line: the key, the value, what was expected."""
    where = [str(part) for part in item["loc"] if not _TYPE_STEP.fullmatch(str(part))]
    key = _cut(".".join(where))
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggest(where)}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if len(where) == 1 and where[0] in Config.model_fields:
        return f"{key} = {_shown(item['input'])}: expected a section with `key: value` lines"
    field = find_field(where)
    expected = f"expected {type_text(field)}" if field else str(item["msg"]).replace("Input should be", "expected")
    return f"{key} = {_shown(item['input'])}: {expected}"


def _suggest(where: list[str]) -> str:
    if instead := _OF_OTHER_TOOLS.get(".".join(where)):
        return f"; {instead}"
    if len(where) == 1:
        choices = list(Config.model_fields)
        elsewhere = [f"{s}.{k}" for s, k, _ in all_fields() if k == where[0]]
    else:
        choices = [key for section, key, _ in all_fields() if section == where[0]]
        elsewhere = [f"{s}.{k}" for s, k, _ in all_fields() if k == where[1]]
    close = difflib.get_close_matches(where[-1], choices, n=1) + elsewhere
    if close:
        return f"; did you mean {' or '.join(close[:3])}?"
    return f"; {'sections are' if len(where) == 1 else f'{where[0]} has'} {', '.join(choices)}"
