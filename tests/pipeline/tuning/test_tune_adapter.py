"""The queue as a searcher of Tune, and the scheduler that ends trials early, beside Ray's own."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distmil.config.loading import build_config
from distmil.errors import TrainingError
from distmil.pipeline.tuning import tune_adapter
from distmil.pipeline.tuning.plan import SearchPlan
from distmil.pipeline.tuning.trial_records import TrialRecords
from distmil.pipeline.tuning.trials import report
from distmil.pipeline.tuning.tune_adapter import TRIAL, QueueSearcher, make_scheduler
from distmil.search.queue import TrialQueue
from distmil.search.samplers import random_values
from distmil.search.space import Domain
from distmil.search.trial import WORST, Trial, score_of

CONFIG = build_config({"training": {"epochs": 4}, "search": {"grace_epochs": 2, "reduction": 2.0}})


def scheduler_of(*scores: float) -> Any:
    """The scheduler that knows finished trials, each with one score in all epochs."""
    over = [
        Trial({"bags.top_k": i}, 0, False, i, "finished", [{"val_slide_auc": score}] * 4)
        for i, score in enumerate(scores)
    ]
    found = make_scheduler(CONFIG, over, metric="slide_auc")
    assert found.set_search_properties("score", "max")
    return found


def tell(scheduler: Any, score: float, epochs: int) -> list[str]:
    trial = SimpleNamespace(trial_id=f"trial of {score}")
    scheduler.on_trial_add(None, trial)
    found = [
        scheduler.on_trial_result(None, trial, report({}, epoch, score=score, is_last=epoch == 3))
        for epoch in range(epochs)
    ]
    scheduler.on_trial_complete(None, trial, {})
    return found


def test_trials_of_an_earlier_call_count():
    assert tell(scheduler_of(), 0.5, 2) == [TrialScheduler.CONTINUE] * 2
    assert tell(scheduler_of(0.6, 0.7), 0.5, 2) == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert tell(scheduler_of(0.4, 0.3), 0.5, 2) == [TrialScheduler.CONTINUE] * 2


def test_a_trial_at_its_last_epoch_is_not_ended_early():
    known = scheduler_of()
    assert tell(known, 0.9, 4) == tell(known, 0.91, 4) == [TrialScheduler.CONTINUE] * 4
    trial = SimpleNamespace(trial_id="late")
    known.on_trial_add(None, trial)
    last = report({}, 3, score=0.1, is_last=True)
    assert known.on_trial_result(None, trial, last) == TrialScheduler.CONTINUE
    assert known.on_trial_result(None, trial, last | {"is_last": False}) == TrialScheduler.CONTINUE  # taken in already


def test_a_failed_trial_is_no_measure():
    known = scheduler_of()
    trial = SimpleNamespace(trial_id="failed")
    known.on_trial_add(None, trial)
    assert known.on_trial_result(None, trial, report({}, 3, error="no loss")) == TrialScheduler.CONTINUE
    assert tell(known, -1e7, 3) == [TrialScheduler.CONTINUE] * 3  # the first that counts


class Rays(ASHAScheduler):
    """Ray's ASHA under the rules for failures, last epochs and earlier results that distmil adds."""

    def __init__(self, config, over, metric):
        super().__init__(
            time_attr="epoch", metric="score", mode="max", max_t=config.training.epochs, stop_last_trials=False,
            grace_period=config.search.grace_epochs, reduction_factor=config.search.reduction,
        )  # fmt: skip
        for record in over:
            for epoch, row in enumerate(record.rows, start=1):
                score = score_of(row, metric)
                known = SimpleNamespace(trial_id=record.key)
                self._brackets[0].on_result(known, epoch, WORST if score is None else score)

    def on_trial_result(self, controller, trial, result):
        if result["error"] is not None:
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(controller, trial, result)
        return TrialScheduler.CONTINUE if result["is_last"] else action


def test_trials_end_as_rays_asha_ends_them_in_random_histories():
    rng, num_stopped, num_decisions = np.random.default_rng(3), 0, 0
    for _ in range(400):
        epochs = int(rng.integers(2, 30))
        grace, reduction = int(rng.integers(1, epochs)), float(rng.choice([1.3, 2.0, 2.5, 3.0, 4.0]))
        config = build_config(
            {"training": {"epochs": epochs}, "search": {"grace_epochs": grace, "reduction": reduction}}
        )
        # few different scores make ties; a missing one is a metric that is not defined
        draw = lambda: None if rng.random() < 0.1 else float(rng.integers(0, 6)) / 5  # noqa: E731
        over = [
            Trial({"bags.top_k": i}, 0, False, i, "finished",
                        [{"val_slide_auc": draw()} for _ in range(rng.integers(1, epochs + 1))])
            for i in range(rng.integers(0, 6))
        ]  # fmt: skip
        ours, rays = make_scheduler(config, over, metric="slide_auc"), Rays(config, over, "slide_auc")
        done = dict.fromkeys(range(12), 0)
        trials = {i: SimpleNamespace(trial_id=f"t{i}") for i in done}
        for trial in trials.values():
            ours.on_trial_add(None, trial)
            rays.on_trial_add(None, trial)
        while done:
            i = int(rng.choice(list(done)))
            done[i] += int(rng.choice([1, 1, 1, 2]))  # Tune may hand on only some of workers' reports
            is_last, fails = done[i] >= epochs, rng.random() < 0.02
            result = report({}, min(done[i], epochs) - 1, score=draw(), is_last=is_last, error="no" if fails else None)
            decisions = {str(scheduler.on_trial_result(None, trials[i], result)) for scheduler in (ours, rays)}
            assert len(decisions) == 1
            num_decisions += 1
            num_stopped += decisions == {TrialScheduler.STOP}
            if is_last or fails or decisions == {TrialScheduler.STOP}:
                del done[i]
    assert num_stopped > 1000
    assert num_decisions > 10_000


@pytest.mark.parametrize("changed", [{"stopping": "none"}, {"grace_epochs": 4}])
def test_nothing_is_ended_early_where_that_is_not_wanted(changed):
    config = build_config({"training": {"epochs": 4}, "search": changed})
    assert type(make_scheduler(config, [], metric="slide_auc")) is FIFOScheduler


def test_the_searcher_can_be_pickled_as_tune_does():
    draws = random_values({"bags.top_k": Domain("choice", (1, 2))}, seed=0)
    cloudpickle.dumps(QueueSearcher(TrialQueue([], known={}, max_lost=0, sampler=draws, count=2)))


def test_the_searcher_waits_for_what_runs_and_then_ends():
    trial = Trial({"bags.top_k": 8}, 0)
    queue = TrialQueue([trial], known={}, max_lost=1)
    searcher = QueueSearcher(queue)
    assert searcher.suggest("1") == {TRIAL: trial}
    assert searcher.suggest("2") is None  # it may be lost
    queue.lose(trial)
    assert searcher.suggest("3") == {TRIAL: trial}
    queue.end(trial, 0.5)
    assert searcher.suggest("4") == Searcher.FINISHED


class Ended:
    """A Tuner that Ctrl-C, or a signal to Tune itself, ends."""

    def __init__(self, records, raises):
        self.records, self.raises = records, raises

    def fit(self):
        trial = self.records.queue.next()
        self.records.trials[trial.key] = Trial(dict(trial.values), 0, False, 0)
        if self.raises:
            raise self.raises


@pytest.mark.parametrize(("raised", "expected"), [(None, TrainingError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_search_that_was_ended_from_outside_is_not_taken_for_done(monkeypatch, tmp_path, raised, expected):
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    plan = SearchPlan("s", str(tmp_path), CONFIG, None, "slide_auc", False, [], [], 0)
    queue = TrialQueue([Trial({"bags.top_k": 8}, 0)], known={}, max_lost=1)
    records = TrialRecords(plan, queue, None)
    monkeypatch.setattr(tune_adapter, "_tuner", lambda *_: Ended(records, raised))
    with pytest.raises(expected):
        tune_adapter.run_trials(plan, records, stops_early=True)
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
