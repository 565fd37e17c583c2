"""A trial trains what a run of its own would train, on every fold, and goes on from its checkpoint."""

from pathlib import Path

import pytest
import torch

from distmil.encoders.registry import EncoderSpec
from distmil.search.fold_training import Fold, FoldTraining, evaluate_run, mean_row
from distmil.storage.store import Store
from distmil.training.engine import evaluate
from distmil.training.run import open_run
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bags, small_config

SPEC = EncoderSpec(name="texture", digest="", dimension=EMBEDDING, weights_file=None)
CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def folds() -> list[Fold]:
    bags = make_bags(24)
    return [Fold(bags[:16], bags[16:]), Fold(bags[8:], bags[:8])]


def test_rows_are_the_means_of_runs_on_each_fold(store: Store) -> None:
    config = small_config()
    trial = FoldTraining(config, folds(), SPEC, store, name="sweep/one", device=CPU)
    rows = [trial.row(epoch) for epoch in range(config.training.epochs)]
    alone = []
    for fold in folds():
        run = open_run(config, fold.train_bags, fold.validation_bags, SPEC, store, name="alone", device=CPU)
        while not run.is_finished:
            run.advance(Workers())
        alone.append(run.history.rows)
    assert rows == [mean_row(pair) for pair in zip(*alone, strict=True)]
    assert trial.is_finished(config.training.epochs - 1)


def test_a_lost_trial_goes_on_from_its_checkpoint(store: Store) -> None:
    config = small_config()
    whole = FoldTraining(config, folds(), SPEC, store, name="sweep/whole", device=CPU)
    wanted = [whole.row(epoch) for epoch in range(4)]
    lost = FoldTraining(config, folds(), SPEC, store, name="sweep/lost", device=CPU)
    lost.row(1)
    lost.save()
    lost.row(2)
    again = FoldTraining(config, folds(), SPEC, store, name="sweep/lost", device=CPU)
    assert [len(run.history.rows) for run in again._runs] == [2, 2]
    assert [again.row(epoch) for epoch in range(4)] == wanted


def test_early_stopping_tells_the_row_that_is_kept(store: Store) -> None:
    config = small_config(training={"epochs": 12, "patience": 2, "lr": 0.5, "select_by": "loss"})
    trial = FoldTraining(config, folds()[:1], SPEC, store, name="sweep/stale", device=CPU)
    epoch, row = 0, trial.row(0)
    while not trial.is_finished(epoch):
        epoch += 1
        row = trial.row(epoch)
    history = trial._runs[0].history
    assert epoch == len(history.rows) - 1 == history.best_epoch + 2 < 11
    assert row == history.rows[history.best_epoch] != history.rows[-1]


def test_under_early_stopping_the_kept_weights_are_judged_though_the_trial_was_lost(store: Store) -> None:
    config = small_config(training={"epochs": 12, "patience": 2, "lr": 0.5, "select_by": "loss"})
    others = make_bags(40)[24:]
    fold, options = folds()[0], {"device": CPU, "keeps_best": True}
    trial = FoldTraining(config, [fold], SPEC, store, name="sweep/kept", **options)
    rows, found = [], []
    while not rows or not trial.is_finished(len(rows) - 1):
        if len(rows) == 3:
            trial.save()
            trial = FoldTraining(config, [fold], SPEC, store, name="sweep/kept", **options)
        rows.append(trial.row(len(rows)))
        found.append(evaluate(trial._runs[0].learner, others, config, workers=Workers()))
    best = trial._runs[0].history.best_epoch
    assert found[best] != found[-1]
    assert trial.evaluate(others) == found[best]
    assert evaluate_run(config, others, SPEC, store, name="sweep/kept/fold-0") == found[best]
    again = FoldTraining(config, [fold], SPEC, store, name="sweep/kept", **options)
    assert [again.row(epoch) for epoch in range(len(rows) - 2)] == rows[:-2]  # told again as it was told


def test_other_slides_are_judged_by_every_folds_network(store: Store) -> None:
    trial = FoldTraining(small_config(), folds(), SPEC, store, name="sweep/judge", device=CPU)
    trial.row(3)
    others = make_bags(40)[30:]
    each = [evaluate(run.learner, others, run.config, workers=Workers()) for run in trial._runs]
    assert trial.evaluate(others) == mean_row(each)
    assert trial.evaluate(others)["slide_auc"] is not None


def test_a_mean_is_of_the_values_that_are_there() -> None:
    assert mean_row([{"a": 1.0, "b": None}, {"a": 3.0, "b": 4.0, "c": None}]) == {"a": 2.0, "b": 4.0, "c": None}
