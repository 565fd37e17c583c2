"""The records of a search's trials, without Ray: the events of trials, in any order."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distmil.config.root import Config
from distmil.errors import StorageError, TrainingError
from distmil.pipeline.tuning.plan import SearchPlan, read_trial, read_trials, write_trial
from distmil.pipeline.tuning.trial_records import TrialRecords
from distmil.pipeline.tuning.trials import failure_report, report
from distmil.search.queue import TrialQueue
from distmil.search.trial import Trial
from distmil.storage.store import Store
from distmil.training.ownership import take_over
from distmil.training.run_files import search_folder

ROWS = [{"val_slide_auc": 0.5 + epoch / 10} for epoch in range(4)]
VALUES = {"bags.top_k": 8}


@pytest.fixture
def plan(tmp_path):
    root = str(Store(str(tmp_path)).root)
    return SearchPlan(
        run="s", root=root, config=Config(), spec=None, metric="slide_auc", is_gpu=False, folds=[], held_out=[], seed=7
    )


class Ears:
    """Hears what the records say, in place of MLflow and the terminal."""

    def __init__(self, plan, *, known=None, max_lost=0):
        self.ended, self.started, self.said = [], [], []
        self.plan, self.trial = plan, Trial(VALUES, plan.seed)
        if known is not None:
            write_trial(plan, known)
        known_trials = {known.key: known} if known else {}
        self.job = SimpleNamespace(console=SimpleNamespace(note=self.said.append))
        self.queue = TrialQueue([self.trial], known=known_trials, max_lost=max_lost)
        self.records = TrialRecords(plan, self.queue, self)
        self.records.open()

    def start(self, trial):
        self.started.append(trial)

    def row(self, trial):
        pass

    def end(self, trial):
        self.ended.append((trial.status, trial.score, len(trial.rows)))

    def tell(self, rows):
        for epoch, row in enumerate(rows):
            self.records.take(self.trial.key, report(row, epoch, score=row["val_slide_auc"]))

    def stored(self):
        return asdict(read_trial(self.plan, self.trial))


@pytest.mark.parametrize(("told", "status"), [(4, "finished"), (2, "stopped")])
def test_a_trial_ends_as_it_was_told(plan, told, status):
    ears = Ears(plan)
    assert ears.queue.next() == ears.trial
    ears.records.start(ears.trial)
    ears.tell(ROWS[:told])
    ears.records.complete(ears.trial.key, is_last=told == len(ROWS))
    assert ears.ended == [(status, ROWS[told - 1]["val_slide_auc"], told)]
    assert ears.stored()["status"] == status
    how = {"finished": "0.8000 after 4 epochs; best 0.8000", "stopped": "0.6000 after 2 epochs, ended early"}[status]
    assert ears.said == [f"trial 1/1: {how}"]
    assert ears.queue.is_done


def test_a_trial_that_was_over_is_told_once_and_not_trained(plan):
    known = Trial(VALUES, 7, False, number=3, status="finished", rows=ROWS, score=0.8, seconds=9.0)
    ears = Ears(plan, known=known)
    assert ears.ended == [("finished", 0.8, 4)]
    assert ears.queue.next() is None
    assert ears.queue.is_done
    assert ears.records.trials[known.key].number == 0


@pytest.mark.parametrize(("status", "mlflow"), [("finished", "abc"), ("running", "abc")])
def test_a_trial_that_fails_before_it_starts_keeps_what_is_known(plan, status, mlflow):
    ears = Ears(plan)
    known = Trial(VALUES, 7, False, number=3, status=status, rows=ROWS, score=0.8, mlflow=mlflow)
    write_trial(plan, known)
    ears.queue.next()
    ears.records.fail(ears.trial)
    stored = ears.stored()
    assert (stored["status"], stored["mlflow"]) == ("finished" if status == "finished" else "failed", mlflow)
    assert ears.ended[0][0] == stored["status"]
    assert ears.queue.is_done


def test_a_lost_trial_is_tried_again_as_often_as_it_may_be(plan):
    ears = Ears(plan, max_lost=2)
    starts = 0
    while ears.queue.next() is not None:
        starts += 1
        ears.records.start(ears.trial)
        ears.tell(ROWS[:2])
        assert ears.stored()["status"] == "running"
        ears.records.fail(ears.trial)
    assert starts == 3
    assert ears.ended == [("failed", 0.6, 2)]
    assert "process or node was lost" in ears.stored()["error"]


def test_a_trial_that_reports_a_lack_of_storage_is_tried_again_and_then_says_why(plan, caplog):
    ears = Ears(plan, max_lost=1)
    for _ in range(2):
        assert ears.queue.next() == ears.trial
        ears.records.start(ears.trial)
        ears.records.take(ears.trial.key, failure_report(StorageError("the disk is full"), 0))
        ears.records.fail(ears.trial)
    assert f"trial {ears.trial.key} was lost (the disk is full) and is tried again" in caplog.text
    assert (ears.stored()["status"], ears.stored()["error"]) == ("failed", "the disk is full")
    assert ears.queue.is_done


def test_a_setting_that_cannot_train_fails_without_another_try(plan):
    ears = Ears(plan, max_lost=2)
    ears.queue.next()
    ears.records.start(ears.trial)
    ears.records.take(ears.trial.key, failure_report(TrainingError("no loss is left"), 0))
    ears.records.complete(ears.trial.key, is_last=False)
    assert (ears.stored()["status"], ears.stored()["error"]) == ("failed", "no loss is left")
    assert ears.queue.is_done


def test_a_defect_fails_at_once_in_words(plan):
    ears = Ears(plan, max_lost=2)
    ears.queue.next()
    ears.records.start(ears.trial)
    ears.records.take(ears.trial.key, failure_report(torch.cuda.OutOfMemoryError("CUDA out of memory"), 1))
    ears.records.fail(ears.trial)
    assert ears.stored()["status"] == "failed"
    assert "CUDA out of memory" in ears.stored()["error"]
    assert ears.queue.is_done


def test_the_records_of_a_search_that_another_job_took_over_stay_as_they_are(plan):
    lease = take_over(plan.store, search_folder(plan.run), run=plan.run)
    ears = Ears(replace(plan, lease=lease))
    ears.queue.next()
    ears.records.start(ears.trial)
    before = plan.store.read(plan.record_file(ears.trial.key))
    take_over(plan.store, search_folder(plan.run), run=plan.run)
    ears.tell(ROWS)
    with pytest.raises(TrainingError, match="run s: another job took it over"):
        ears.records.complete(ears.trial.key, is_last=True)
    assert plan.store.read(plan.record_file(ears.trial.key)) == before


def test_a_damaged_record_of_a_trial_is_told_and_another_ones_in_its_place_too(plan):
    trials = [Trial({"bags.top_k": k}, 7, claim="c") for k in (1, 2)]
    for trial in trials:
        write_trial(plan, Trial(dict(trial.values), 7, False, 0, status="finished", claim="c"))
    first, second = (Path(plan.store.path(plan.record_file(trial.key))) for trial in trials)
    whole = first.read_bytes()
    for wrong in (second.read_bytes(), whole.replace(b"finished", b"finishee"), whole[: len(whole) // 2]):
        first.write_bytes(wrong)
        with pytest.raises(StorageError, match="is damaged"):
            read_trials(replace(plan, claim="c"))
