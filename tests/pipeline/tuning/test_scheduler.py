"""What Tune is handed: the agenda as a searcher, and rungs that know of an earlier call."""

import os
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distmil.config.loading import build_config
from distmil.errors import TrainingError
from distmil.pipeline.tuning import scheduler as sweeping
from distmil.pipeline.tuning.callback import TrialBook
from distmil.pipeline.tuning.scheduler import AgendaSearcher, Rungs, make_scheduler
from distmil.pipeline.tuning.trials import TASK, Sweep, report
from distmil.search.queue import Agenda
from distmil.search.samplers import random_values
from distmil.search.space import Domain, Task, TrialRecord

CONFIG = build_config({"training": {"epochs": 4}, "search": {"grace_epochs": 2, "reduction": 2.0}})


def rungs(*scores: float) -> Rungs:
    """Rungs that know of finished trials, each with the same score in every epoch."""
    over = [
        TrialRecord({"bags.top_k": i}, 0, False, i, "finished", [{"val_slide_auc": score}] * 4)
        for i, score in enumerate(scores)
    ]
    found = Rungs(CONFIG, over, metric="slide_auc")
    found.set_search_properties("score", "max")
    return found


def tell(scheduler: Rungs, score: float, epochs: int, **more: bool) -> list[str]:
    trial = SimpleNamespace(trial_id=f"trial of {score}")
    scheduler.on_trial_add(None, trial)
    found = [
        scheduler.on_trial_result(None, trial, report({}, epoch, score=score, is_last=epoch == 3))
        for epoch in range(epochs)
    ]
    scheduler.on_trial_complete(None, trial, {})
    return found


def test_trials_of_an_earlier_call_count_in_the_rungs():
    assert tell(rungs(), 0.5, 2) == [TrialScheduler.CONTINUE] * 2
    assert tell(rungs(0.6, 0.7), 0.5, 2) == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert tell(rungs(0.4, 0.3), 0.5, 2) == [TrialScheduler.CONTINUE] * 2


def test_a_trial_at_its_last_epoch_is_not_ended_early():
    known = rungs()
    assert tell(known, 0.9, 4) == tell(known, 0.91, 4) == [TrialScheduler.CONTINUE] * 4
    trial = SimpleNamespace(trial_id="late")
    known.on_trial_add(None, trial)
    last = report({}, 3, score=0.1, is_last=True)
    assert known.on_trial_result(None, trial, last) == TrialScheduler.CONTINUE
    assert known.on_trial_result(None, trial, last | {"is_last": False}) == TrialScheduler.CONTINUE  # taken in already


def test_a_failed_trial_is_no_measure():
    known = rungs()
    trial = SimpleNamespace(trial_id="failed")
    known.on_trial_add(None, trial)
    assert known.on_trial_result(None, trial, report({}, 3, error="no loss")) == TrialScheduler.CONTINUE
    assert all(not recorded for _, recorded in known._brackets[0]._rungs)


@pytest.mark.parametrize("changed", [{"stopping": "none"}, {"grace_epochs": 4}])
def test_nothing_is_ended_early_where_that_is_not_wanted(changed):
    config = build_config({"training": {"epochs": 4}, "search": changed})
    assert type(make_scheduler(config, [], metric="slide_auc")) is FIFOScheduler


def test_the_searcher_can_be_pickled_as_tune_does():
    draws = random_values({"bags.top_k": Domain("choice", (1, 2))}, seed=0)
    cloudpickle.dumps(AgendaSearcher(Agenda([], known={}, max_lost=0, draws=draws, count=2)))


def test_the_searcher_waits_for_what_runs_and_then_ends():
    task = Task({"bags.top_k": 8}, 0)
    agenda = Agenda([task], known={}, max_lost=1)
    searcher = AgendaSearcher(agenda)
    assert searcher.suggest("1") == {TASK: task}
    assert searcher.suggest("2") is None  # it may be lost
    agenda.lose(task)
    assert searcher.suggest("3") == {TASK: task}
    agenda.end(task, 0.5)
    assert searcher.suggest("4") == Searcher.FINISHED


class Ended:
    """A Tuner that Ctrl-C, or a signal to Tune itself, ends."""

    def __init__(self, book, raises):
        self.book, self.raises = book, raises

    def fit(self):
        task = self.book.agenda.next()
        self.book.records[task.key] = TrialRecord(dict(task.values), 0, False, 0)
        if self.raises:
            raise self.raises


@pytest.mark.parametrize(("raised", "expected"), [(None, TrainingError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_search_that_was_ended_from_outside_is_not_taken_for_done(monkeypatch, tmp_path, raised, expected):
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    values = {"training": {"num_workers": 1}}
    sweep = Sweep("s", str(tmp_path), values, None, "slide_auc", False, [], [], 0)
    agenda = Agenda([Task({"bags.top_k": 8}, 0)], known={}, max_lost=1)
    book = TrialBook(sweep, agenda, lambda _: None, lambda _: None, lambda *_, **__: None)
    monkeypatch.setattr(sweeping, "_tuner", lambda *_: Ended(book, raised))
    with pytest.raises(expected):
        sweeping.run_agenda(sweep, CONFIG, book, stops_early=True)
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
