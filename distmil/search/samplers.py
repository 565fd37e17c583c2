"""Samplers of a search's space: random, grid and Optuna. No setting is drawn twice."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distmil.config.root import fingerprint
from distmil.errors import ConfigError
from distmil.search.space import Domain, Values
from distmil.search.trial import Trial

MAX_REPEATED = 200
"""Draws by Optuna of what was drawn before, after which a new setting is drawn at random."""


def num_settings(space: Mapping[str, Domain]) -> int | None:
    """Count the settings of a space, None where a range is continuous."""
    every = [_listed(domain) for domain in space.values()]
    return None if None in every else math.prod(len(values or ()) for values in every)


def _listed(domain: Domain) -> Sequence[Any] | None:
    """List the values of a domain, whole numbers of the type that the key has; None for a continuous range."""
    if domain.kind != "int":
        return domain.values if domain.kind == "choice" else None
    low, high = domain.values
    return [type(low)(number) for number in range(int(low), int(high) + 1)]


def draw_ahead(
    space: Mapping[str, Domain], default: Values, *, algorithm: str, count: int, seed: int
) -> tuple[list[Values], int]:
    """List the settings that are known before any result, and count those that there will be.

    Where the space has no more settings than are wanted, all are listed.

    Args:
        space: The domain of each key.
        default: The values without a search; they come first where they are in the space.
        algorithm: ``random``, ``grid``, or ``optuna``, of which only the default values are known.
        count: Settings wanted; not used by a grid.
        seed: Of the draws.
    """
    first = [dict(default)] if all(default[key] in domain for key, domain in space.items()) else []
    size = num_settings(space)
    if algorithm == "grid" or (size is not None and size <= count):
        every = distinct([*first, *all_values(space)])
        return every, len(every)
    drawn = distinct(itertools.chain(first, random_values(space, seed=seed) if algorithm == "random" else ()), count)
    return drawn, count


def distinct(settings: Iterable[Values], count: int | None = None) -> list[Values]:
    """List settings without repetitions, at most ``count``."""
    found: dict[str, Values] = {}
    for values in settings:
        if len(found) == count:
            break
        found.setdefault(fingerprint(values), values)
    return list(found.values())


def all_values(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    """Yield every setting of a space of choices and whole numbers."""
    for values in itertools.product(*(_listed(domain) or () for domain in space.values())):
        yield dict(zip(space, values, strict=True))


def random_values(space: Mapping[str, Domain], *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield random settings without end. A seed gives the same order, however many are taken."""
    generator = np.random.default_rng(seed)
    while True:
        yield {key: _draw(domain, generator) for key, domain in space.items()}


def _draw(domain: Domain, generator: np.random.Generator) -> Any:
    if domain.kind == "choice":
        return domain.values[int(generator.choice(len(domain.values)))]
    low, high = domain.values
    if domain.kind == "int":
        return type(low)(generator.integers(int(low), int(high) + 1))
    if domain.kind == "uniform":
        return float(generator.uniform(low, high))
    return min(max(10 ** float(generator.uniform(math.log10(low), math.log10(high))), low), high)


class OptunaSampler:
    """Draw by Optuna's TPE from the results so far.

    Choices are known to it by their place, for it takes no lists or mappings.
    """

    def __init__(self, space: Mapping[str, Domain], *, seed: int, results: Sequence[Trial]) -> None:
        """Begin with the results so far; another number of them draws from another seed. Raises: ConfigError."""
        try:
            import optuna  # noqa: PLC0415  # an extra
        except ImportError as error:
            message = "search.algorithm = 'optuna': install the extra, pip install 'distmil[optuna]'"
            raise ConfigError(message) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space = optuna, space
        sampler = optuna.samplers.TPESampler(seed=(seed + len(results)) % 2**32)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {key: self._distribution(domain) for key, domain in space.items()}
        self._random = random_values(space, seed=seed)
        self._asked: dict[str, Any] = {}
        for record in results:
            self.tell(record.values, record.score)

    def ask(self, is_new: Callable[[Values], bool]) -> Values:
        """Draw the next setting that is new; there must be one."""
        for _ in range(MAX_REPEATED):
            trial = self._study.ask(self._distributions)
            values = {key: self._value(domain, trial.params[key]) for key, domain in self._space.items()}
            if is_new(values):
                self._asked[fingerprint(values)] = trial
                return values
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return next(values for values in self._random if is_new(values))

    def tell(self, values: Values, score: float | None) -> None:
        """Take in a result; None: the setting cannot be trained."""
        trial = self._asked.pop(fingerprint(values), None)
        if trial is not None:
            state = self._optuna.trial.TrialState.FAIL if score is None else None
            self._study.tell(trial, score, state=state)
        elif score is not None:
            params = {key: self._param(domain, values[key]) for key, domain in self._space.items()}
            make = self._optuna.trial.create_trial
            self._study.add_trial(make(params=params, distributions=self._distributions, value=score))

    def _distribution(self, domain: Domain) -> Any:
        made = self._optuna.distributions
        if domain.kind == "choice":
            return made.CategoricalDistribution(range(len(domain.values)))
        if domain.kind == "int":
            return made.IntDistribution(*map(int, domain.values))
        return made.FloatDistribution(*domain.values, log=domain.kind == "loguniform")

    @staticmethod
    def _value(domain: Domain, param: Any) -> Any:
        if domain.kind == "choice":
            return domain.values[param]
        return type(domain.values[0])(param) if domain.kind == "int" else param

    @staticmethod
    def _param(domain: Domain, value: Any) -> Any:
        if domain.kind == "choice":
            return domain.values.index(value)
        return int(value) if domain.kind == "int" else value
