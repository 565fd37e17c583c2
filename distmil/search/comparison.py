"""Settings that are trained again over fresh seeds, and their comparison."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from distmil.config.root import Config
from distmil.models.losses import LOSSES
from distmil.search.space import Values
from distmil.search.trial import Trial, score_of

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Spread:
    """Scores of one setting over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Standard deviation of the scores."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.sd:.4f}"


@dataclass(frozen=True)
class Difference:
    """One setting less another, paired by seed."""

    mean: float
    sd: float
    low: float
    """Lower end of the mean's 95 % confidence interval."""
    high: float
    p: float | None
    """Of a two-sided paired t-test; None where all differences are equal, so that no test is possible."""
    wins: int
    """Seeds with a positive difference."""

    @property
    def is_better(self) -> bool:
        """Whether the first is better by more than seeds explain."""
        return self.mean > 0 and self.p is not None and self.p < SIGNIFICANT

    @property
    def is_worse(self) -> bool:
        """Whether the first is worse by more than seeds explain."""
        return self.mean < 0 and self.p is not None and self.p < SIGNIFICANT


def spread_of(rows: Sequence[Mapping[str, float | None]], metric: str, prefix: str = "val_") -> Spread | None:
    """Collect the scores of a setting's last rows over its seeds, None where a score is not defined."""
    scores = [score_of(row, metric, prefix) for row in rows]
    return Spread(tuple(score for score in scores if score is not None)) if None not in scores else None


def compare(one: Spread, other: Spread) -> Difference:
    """Compare two settings that were trained with the same seeds, at least two."""
    differences = np.array(one.values) - np.array(other.values)
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    if sd < 1e-12:
        return Difference(mean, 0.0, mean, mean, None, int((differences > 0).sum()))
    found = stats.ttest_rel(one.values, other.values)
    low, high = found.confidence_interval(0.95)
    return Difference(mean, sd, float(low), float(high), float(found.pvalue), int((differences > 0).sum()))


def ablations(active: Config, values: Values) -> dict[str, dict[str, Any]]:
    """List the values without each of the losses that they are trained with, by the loss's name, if one is left.

    Args:
        active: The values' configuration, with the losses off that the network or the labels do not carry.
        values: The searched values.
    """
    names = [name for name in LOSSES if getattr(active.losses, name)]
    return {name: {**values, f"losses.{name}": 0.0} for name in names} if len(names) > 1 else {}


def repeat_trials(settings: Mapping[str, Values], seeds: Sequence[int], *, claim: str = "") -> list[Trial]:
    """List every setting with every seed, seeds in the outer loop; equal settings are trained once."""
    pairs = itertools.product(seeds, settings.values())
    trials = [Trial(values, seed, is_repeat=True, claim=claim) for seed, values in pairs]
    return list({trial.key: trial for trial in trials}.values())
