"""The records of a search's trials, without Ray: the events of trials, in any order."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distmil.config.root import Config
from distmil.errors import StorageError, TrainingError
from distmil.pipeline.tuning.plan import SearchPlan, read_trial, read_trials, search_folder, write_trial
from distmil.pipeline.tuning.trial_records import TrialRecords
from distmil.pipeline.tuning.trials import failure_report, report
from distmil.search.queue import TrialQueue
from distmil.search.space import Task, TrialRecord
from distmil.storage.store import Store
from distmil.training.ownership import take_over

ROWS = [{"val_slide_auc": 0.5 + epoch / 10} for epoch in range(4)]
VALUES = {"bags.top_k": 8}


@pytest.fixture
def plan(tmp_path):
    root = str(Store(str(tmp_path)).root)
    return SearchPlan(
        run="s", root=root, config=Config(), spec=None, metric="slide_auc", is_gpu=False, folds=[], held_out=[], seed=7
    )


class Ears:
    """Hears what the book says."""

    def __init__(self, plan, *, known=None, max_lost=0):
        self.ended, self.started = [], []
        self.plan, self.task = plan, Task(VALUES, plan.seed)
        if known is not None:
            plan.store.write_json(plan.record_file(self.task), known.to_json())
        self.queue = TrialQueue([self.task], known={self.task.key: known} if known else {}, max_lost=max_lost)
        self.records = TrialRecords(plan, self.queue, self.started.append, lambda _: None, self.hear)
        self.records.open()

    def hear(self, record, *, was_over):
        self.ended.append((record.status, record.score, len(record.rows), was_over))

    def tell(self, rows):
        for epoch, row in enumerate(rows):
            self.records.take(self.task, report(row, epoch, score=row["val_slide_auc"]))

    def stored(self):
        return read_trial(self.plan, self.task).to_json()


@pytest.mark.parametrize(("told", "status"), [(4, "finished"), (2, "stopped")])
def test_a_trial_ends_as_it_was_told(plan, told, status):
    ears = Ears(plan)
    assert ears.queue.next() == ears.task
    ears.records.start(ears.task)
    ears.tell(ROWS[:told])
    ears.records.complete(ears.task, is_last=told == len(ROWS))
    assert ears.ended == [(status, ROWS[told - 1]["val_slide_auc"], told, False)]
    assert ears.stored()["status"] == status
    assert ears.queue.is_done


def test_a_trial_that_was_over_is_told_once_and_not_trained(plan):
    known = TrialRecord(VALUES, 7, False, number=3, status="finished", rows=ROWS, score=0.8, seconds=9.0)
    ears = Ears(plan, known=known)
    assert ears.ended == [("finished", 0.8, 4, True)]
    assert ears.queue.next() is None
    assert ears.queue.is_done
    assert ears.records.records[ears.task.key].number == 0


@pytest.mark.parametrize(("status", "mlflow"), [("finished", "abc"), ("running", "abc")])
def test_a_trial_that_fails_before_it_starts_keeps_what_is_known(plan, status, mlflow):
    ears = Ears(plan)
    known = TrialRecord(VALUES, 7, False, number=3, status=status, rows=ROWS, score=0.8, mlflow=mlflow)
    plan.store.write_json(plan.record_file(ears.task), known.to_json())
    ears.queue.next()
    ears.records.fail(ears.task)
    stored = ears.stored()
    assert (stored["status"], stored["mlflow"]) == ("finished" if status == "finished" else "failed", mlflow)
    assert ears.ended[0][0] == stored["status"]
    assert ears.queue.is_done


def test_a_lost_trial_is_tried_again_as_often_as_it_may_be(plan):
    ears = Ears(plan, max_lost=2)
    starts = 0
    while ears.queue.next() is not None:
        starts += 1
        ears.records.start(ears.task)
        ears.tell(ROWS[:2])
        assert ears.stored()["status"] == "running"
        ears.records.fail(ears.task)
    assert starts == 3
    assert ears.ended == [("failed", 0.6, 2, False)]
    assert "process or node was lost" in ears.stored()["error"]


def test_a_trial_that_reports_a_lack_of_storage_is_tried_again_and_then_says_why(plan, caplog):
    ears = Ears(plan, max_lost=1)
    for _ in range(2):
        assert ears.queue.next() == ears.task
        ears.records.start(ears.task)
        ears.records.take(ears.task, failure_report(StorageError("the disk is full"), 0))
        ears.records.fail(ears.task)
    assert f"trial {ears.task.key} was lost (the disk is full) and is tried again" in caplog.text
    assert (ears.stored()["status"], ears.stored()["error"]) == ("failed", "the disk is full")
    assert ears.queue.is_done


def test_a_setting_that_cannot_train_fails_without_another_try(plan):
    ears = Ears(plan, max_lost=2)
    ears.queue.next()
    ears.records.start(ears.task)
    ears.records.take(ears.task, failure_report(TrainingError("no loss is left"), 0))
    ears.records.complete(ears.task, is_last=False)
    assert (ears.stored()["status"], ears.stored()["error"]) == ("failed", "no loss is left")
    assert ears.queue.is_done


def test_a_defect_fails_at_once_in_words(plan):
    ears = Ears(plan, max_lost=2)
    ears.queue.next()
    ears.records.start(ears.task)
    ears.records.take(ears.task, failure_report(torch.cuda.OutOfMemoryError("CUDA out of memory"), 1))
    ears.records.fail(ears.task)
    assert ears.stored()["status"] == "failed"
    assert "CUDA out of memory" in ears.stored()["error"]
    assert ears.queue.is_done


def test_the_records_of_a_search_that_another_job_took_over_stay_as_they_are(plan):
    lease = take_over(plan.store, search_folder(plan.run), run=plan.run)
    ears = Ears(replace(plan, lease=lease))
    ears.queue.next()
    ears.records.start(ears.task)
    before = plan.store.read(plan.record_file(ears.task))
    take_over(plan.store, search_folder(plan.run), run=plan.run)
    ears.tell(ROWS)
    with pytest.raises(TrainingError, match="run s: another job took it over"):
        ears.records.complete(ears.task, is_last=True)
    assert plan.store.read(plan.record_file(ears.task)) == before


def test_a_damaged_record_of_a_trial_is_told_and_another_ones_in_its_place_too(plan):
    tasks = [Task({"bags.top_k": k}, 7, claim="c") for k in (1, 2)]
    for task in tasks:
        write_trial(plan, TrialRecord(dict(task.values), 7, False, 0, status="finished", claim="c"))
    first, second = (Path(plan.store.path(plan.record_file(task))) for task in tasks)
    whole = first.read_bytes()
    for wrong in (second.read_bytes(), whole.replace(b"finished", b"finishee"), whole[: len(whole) // 2]):
        first.write_bytes(wrong)
        with pytest.raises(StorageError, match="is damaged"):
            read_trials(replace(plan, claim="c"))
