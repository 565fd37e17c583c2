"""One trial of a search: a setting trained on every fold side by side, epoch by epoch. Torch only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distmil.bags import Bag
from distmil.checkpoints import save_checkpoint
from distmil.config import Config
from distmil.encoders import EncoderSpec
from distmil.engine import evaluate
from distmil.group import Group
from distmil.runs import Run, open_run
from distmil.storage import Store

Row = dict[str, float | None]


@dataclass(frozen=True)
class Fold:
    """Bags to train on, and others to judge on."""

    learning: Sequence[Bag]
    judging: Sequence[Bag]


class Trial:
    """A setting in training, on one fold or on several."""

    def __init__(
        self, config: Config, folds: Sequence[Fold], spec: EncoderSpec, store: Store, *, name: str, device: torch.device
    ) -> None:
        self._store, self._name = store, name
        self._runs = [
            open_run(config, fold.learning, fold.judging, spec, store, name=_run_name(name, i), device=device)
            for i, fold in enumerate(folds)
        ]

    def row(self, epoch: int) -> Row:
        """Train up to an epoch where that is not done, and return its metrics, means over the folds.

        With early stopping they are those of the best epoch so far, as the run would keep it.
        """
        for run in self._runs:
            while len(run.history.rows) <= epoch and not run.is_finished:
                run.advance(Group())
        return mean_row([_kept_row(run, epoch) for run in self._runs])

    def is_finished(self, epoch: int) -> bool:
        """Return whether no fold has anything left to train after an epoch."""
        return all(run.is_finished and len(run.history.rows) <= epoch + 1 for run in self._runs)

    def judge(self, bags: Sequence[Bag]) -> Row:
        """Return the metrics of other slides, means over the folds' networks."""
        return mean_row([evaluate(run.learner, bags, run.config, group=Group()) for run in self._runs])

    def save(self) -> None:
        """Commit a checkpoint of every fold."""
        for i, run in enumerate(self._runs):
            save_checkpoint(self._store, _run_name(self._name, i), run.learner, run.history, is_best=False)

    def clear(self) -> None:
        """Delete the trial's checkpoints."""
        for i in range(len(self._runs)):
            folder = f"checkpoints/{_run_name(self._name, i)}"
            for file in self._store.names(folder):
                self._store.delete(f"{folder}/{file}")


def _run_name(name: str, fold: int) -> str:
    return f"{name}/fold-{fold}"


def _kept_row(run: Run, epoch: int) -> Row:
    rows = run.history.rows
    if run.config.training.patience and len(rows) <= epoch + 1:
        return rows[run.history.best_epoch]
    return rows[min(epoch, len(rows) - 1)]


def mean_row(rows: Sequence[Row]) -> Row:
    """Return the mean of every value over the rows that have it, None where none has."""
    found: Row = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [value for row in rows if (value := row.get(name)) is not None]
        found[name] = sum(values) / len(values) if values else None
    return found
