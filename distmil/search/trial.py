"""A trial of a search: one setting and seed, the course of its training, and what trials are compared by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distmil.config.root import fingerprint
from distmil.search.space import Values

WORST = -1e6
"""Score of a trial that cannot go on; every metric is better."""
Row = dict[str, float | None]


@dataclass
class Trial:
    """One setting and seed, and its course so far. JSON-ready."""

    values: Values
    seed: int
    is_repeat: bool = False
    """It is part of the comparison at the end, and evaluated on held-out slides as well."""
    number: int = 0
    """Place in the order of the search."""
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    rows: list[Row] = field(default_factory=list)
    score: float | None = None
    error: str | None = None
    seconds: float = 0.0
    mlflow: str | None = None
    """Id of its run in MLflow."""
    claim: str = ""
    """Fingerprint of all else that the search depends on: slides, labels, folds and settings."""

    @property
    def key(self) -> str:
        """A name made from everything that is trained."""
        names = ("values", "seed", "is_repeat", "claim")
        return fingerprint({name: getattr(self, name) for name in names})

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train; a failed trial is tried again."""
        return self.status in {"finished", "stopped"}


def score_of(row: Mapping[str, float | None], metric: str, prefix: str = "val_") -> float | None:
    """Compute the score that trials are compared by, higher is better; None where it is not defined."""
    if metric == "loss":
        loss = row.get(f"{prefix}slide_loss")
        return None if loss is None else -loss
    return row.get(f"{prefix}{metric}")


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Choose the trial with the best score of those that were trained to the end; the earlier of equal ones."""
    done = [trial for trial in trials if trial.status == "finished" and trial.score is not None]
    return max(done, key=lambda trial: (trial.score or 0.0, -trial.number)) if done else None
