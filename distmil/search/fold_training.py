"""The training of a trial on every fold side by side, epoch by epoch. Torch only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distmil.bags.bag import Bag
from distmil.config.learning import TrainingConfig
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.search.trial import Row
from distmil.storage.store import Store
from distmil.training.checkpoints import load_checkpoint, save_checkpoint
from distmil.training.engine import History, evaluate
from distmil.training.run import new_learner, open_run
from distmil.training.workers import Workers


@dataclass(frozen=True)
class Fold:
    """Bags to train on, and others to validate on."""

    train_bags: Sequence[Bag]
    validation_bags: Sequence[Bag]


class FoldTraining:
    """A setting in training, on one fold or on several."""

    def __init__(
        self,
        config: Config,
        folds: Sequence[Fold],
        spec: EncoderSpec,
        store: Store,
        *,
        name: str,
        device: torch.device,
        keeps_best: bool = False,
    ) -> None:
        self._store, self._name = store, name
        self._keeps_best = keeps_best and config.training.patience > 0
        self._runs = [
            open_run(config, fold.train_bags, fold.validation_bags, spec, store, name=_run_name(name, i), device=device)
            for i, fold in enumerate(folds)
        ]

    def row(self, epoch: int) -> Row:
        """Train up to an epoch where that is not done, and return its metrics, means over the folds.

        With early stopping they are those of the best epoch so far, as the run would keep it.
        """
        for i, run in enumerate(self._runs):
            while len(run.history.rows) <= epoch and not run.is_finished:
                if run.advance(Workers()) and self._keeps_best:
                    self._save(i, is_best=True)
        return mean_row([kept_row(run.history, run.config.training, epoch) for run in self._runs])

    def is_finished(self, epoch: int) -> bool:
        """Return whether no fold has anything left to train after an epoch."""
        return all(run.is_finished and len(run.history.rows) <= epoch + 1 for run in self._runs)

    def evaluate(self, bags: Sequence[Bag]) -> Row:
        """Evaluate on other slides, means over the folds' networks.

        With early stopping the networks are those of the best epochs, which must have been kept.
        """
        if self._keeps_best:
            for i, run in enumerate(self._runs):
                load_checkpoint(self._store, _run_name(self._name, i), run.learner, best=True)
        return mean_row([evaluate(run.learner, bags, run.config, workers=Workers()) for run in self._runs])

    def save(self) -> None:
        """Commit a checkpoint of every fold."""
        for i in range(len(self._runs)):
            self._save(i, is_best=False)

    def _save(self, fold: int, *, is_best: bool) -> None:
        run = self._runs[fold]
        save_checkpoint(self._store, _run_name(self._name, fold), run.learner, run.history, is_best=is_best)


def _run_name(name: str, fold: int) -> str:
    return f"{name}/fold-{fold}"


def kept_row(history: History, training: TrainingConfig, epoch: int) -> Row:
    """Choose the metrics of the network that a run would have kept after an epoch."""
    rows = history.rows[: epoch + 1]
    if not training.patience:
        return rows[-1]
    seen = History()
    for row in rows:
        seen.add(row, select_by=training.select_by)
    return rows[seen.best_epoch]


def evaluate_run(config: Config, bags: Sequence[Bag], spec: EncoderSpec, store: Store, *, name: str) -> Row:
    """Evaluate the network that a finished run kept on other slides, on the CPU."""
    learner = new_learner(config, spec, store, device=torch.device("cpu"))
    load_checkpoint(store, name, learner, best=config.training.patience > 0)
    return evaluate(learner, bags, config, workers=Workers())


def mean_row(rows: Sequence[Row]) -> Row:
    """Average every value over the rows that have it, None where none has."""
    found: Row = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [value for row in rows if (value := row.get(name)) is not None]
        found[name] = sum(values) / len(values) if values else None
    return found
