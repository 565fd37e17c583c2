"""The space of a search: the domain of every searched key."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distmil.config.loading import build_config
from distmil.config.root import Config, fingerprint
from distmil.config.section import has_mark
from distmil.errors import ConfigError

KINDS = ("choice", "uniform", "loguniform", "int")
SECTIONS = ("bags", "model", "losses", "training")
FIXED = ("training.seed", "training.epochs", "training.select_by", "training.patience")
"""Keys that must be the same for all trials, or they could not be compared."""
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Domain:
    """What one key may be: a choice of values, or a range from the first to the second."""

    kind: str
    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        return isinstance(value, int | float) and low <= value <= high


def check_folds(config: Config) -> None:
    """Refuse folds for trials that several workers train, who know train and val only. Raises: ConfigError."""
    folds, workers = config.search.folds, config.training.num_workers
    if folds and workers > 1:
        raise ConfigError(
            f"search.folds = {folds}: a trial with training.num_workers = {workers} trains on train and is validated "
            "on val; set training.num_workers=1, with which folds are trained side by side, or search.folds=0"
        )


def read_space(config: Config) -> dict[str, Domain]:
    """Read the domain of every searched key.

    Raises:
        ConfigError: With every key that cannot be searched and every value that it cannot have.
    """
    space, problems = {}, []
    for key, given in _flat(config.search.space).items():
        try:
            space[key] = _read_domain(key, given)
            _check_domain(config, key, space[key])
            space[key] = _settled(config, key, space[key])
        except ConfigError as error:
            problems += str(error).splitlines()
    if config.search.algorithm == "grid":
        problems += [
            f"search.space.{key}: a grid needs choices, this is {domain.kind}"
            for key, domain in space.items()
            if domain.kind != "choice"
        ]
    if problems:
        raise ConfigError("\n".join(problems))
    return space


def _flat(space: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Write nested sections as dotted keys."""
    found: dict[str, Any] = {}
    for name, given in space.items():
        key = f"{above}{name}"
        is_section = isinstance(given, dict) and not set(given) & set(KINDS) and key.count(".") < 1
        found |= _flat(given, f"{key}.") if is_section and given else {key: given}
    return found


def _read_domain(key: str, given: Any) -> Domain:
    if isinstance(given, list):
        given = {"choice": given}
    problem = ConfigError(
        f"search.space.{key} = {given!r}: expected a list of values, or one of choice: [...], uniform: [a, b], "
        "loguniform: [a, b], int: [a, b]"
    )
    if not isinstance(given, dict) or len(given) != 1:
        raise problem
    ((kind, values),) = given.items()
    if kind not in KINDS or not isinstance(values, list) or not values:
        raise problem
    if kind != "choice":
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
        if len(values) != 2 or len(numbers) != 2 or not values[0] < values[1]:
            raise ConfigError(f"search.space.{key} = {given!r}: expected two numbers, the smaller first")
        if kind == "loguniform" and values[0] <= 0:
            raise ConfigError(f"search.space.{key} = {given!r}: a loguniform range starts above 0")
        if kind == "int" and not all(isinstance(v, int) for v in values):
            raise ConfigError(f"search.space.{key} = {given!r}: expected two integers")
    return Domain(kind, tuple(values))


def _check_domain(config: Config, key: str, domain: Domain) -> None:
    """Refuse a key that cannot be searched, and values that it cannot have. Raises: ConfigError."""
    section, _, name = key.partition(".")
    fields = type(getattr(config, section)).model_fields if section in SECTIONS else {}
    if name not in fields:
        raise ConfigError(f"search.space.{key}: there is no such key in {', '.join(SECTIONS)}")
    if key in FIXED or not has_mark(fields[name], "identity", default=True):
        raise ConfigError(f"search.space.{key}: this key is the same for all trials")
    problems = []
    for value in domain.values:
        try:
            with_values(config, {key: value})
        except ConfigError as error:
            problems += [f"search.space.{line}" for line in str(error).splitlines() if key in line]
            if not problems:
                problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    if domain.kind in {"uniform", "loguniform"}:
        low, high = domain.values
        try:
            with_values(config, {key: float(low + 0.381966 * (high - low))})
        except ConfigError:
            raise ConfigError(f"search.space.{key}: this key needs whole numbers; use int: [a, b]") from None


def _settled(config: Config, key: str, domain: Domain) -> Domain:
    """Convert choices and whole numbers to the types of the configuration, each once: 1 and 1.0 are one weight."""
    if domain.kind not in {"choice", "int"}:
        return domain
    values = [with_values(config, {key: value}).flat()[key] for value in domain.values]
    return Domain(domain.kind, tuple({fingerprint({key: value}): value for value in values}.values()))


def with_values(config: Config, values: Values) -> Config:
    """Build the configuration with dotted keys set. Raises: ConfigError."""
    nested = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested[section][name] = value
    return build_config(nested)


def default_values(config: Config, space: Mapping[str, Domain]) -> dict[str, Any]:
    """List the values that the searched keys have without a search."""
    known = config.flat()
    return {key: known[key] for key in space}
