"""The records of a search's trials, without Ray's processes: what Tune tells the book, in whatever order."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from distmil.errors import StorageError, TrainingError
from distmil.pipeline.tuning.callback import TrialBook, in_words, is_lost
from distmil.pipeline.tuning.trials import TASK, Sweep, read_trial, read_trials, search_folder, write_trial
from distmil.search.queue import Agenda
from distmil.search.space import Task, TrialRecord
from distmil.storage.store import Store
from distmil.training.ownership import take_over

ROWS = [{"val_slide_auc": 0.5 + epoch / 10} for epoch in range(4)]
VALUES = {"bags.top_k": 8}


@pytest.fixture
def sweep(tmp_path):
    root, values = str(Store(str(tmp_path)).root), {"training": {"num_workers": 1}}
    return Sweep(
        run="s", root=root, values=values, spec=None, metric="slide_auc", is_gpu=False, folds=[], held_out=[], seed=7
    )


class Ears:
    """Hears what the book says."""

    def __init__(self, sweep, *, known=None, max_lost=0):
        self.ended, self.started = [], []
        self.sweep, self.task = sweep, Task(VALUES, sweep.seed)
        if known is not None:
            sweep.store.write_json(sweep.record_file(self.task), known.to_json())
        self.agenda = Agenda([self.task], known={self.task.key: known} if known else {}, max_lost=max_lost)
        self.book = TrialBook(sweep, self.agenda, self.started.append, lambda _: None, self.hear)
        self.book.open()

    def hear(self, record, *, was_over):
        self.ended.append((record.status, record.score, len(record.rows), was_over))

    def trial(self, *, is_last=False, error_file=None):
        return SimpleNamespace(
            trial_id="t1", config={TASK: self.task}, last_result={"is_last": is_last}, pickled_error_file=error_file
        )

    def tell(self, trial, rows):
        for epoch, row in enumerate(rows, start=1):
            result = {"epoch": epoch, "row": row, "score": row["val_slide_auc"], "error": None}
            self.book.on_trial_result(0, [], trial, result)

    def stored(self):
        return read_trial(self.sweep, self.task).to_json()


def error_file(tmp_path, cause):
    path = tmp_path / "error.pkl"
    error = RayTaskError("step", "Traceback\n" + str(cause), cause).as_instanceof_cause()
    path.write_bytes(cloudpickle.dumps(error))
    return str(path)


@pytest.mark.parametrize(("told", "status"), [(4, "finished"), (2, "stopped")])
def test_a_trial_ends_as_it_was_told(sweep, told, status):
    ears = Ears(sweep)
    trial = ears.trial(is_last=told == len(ROWS))
    assert ears.agenda.next() == ears.task
    ears.book.on_trial_start(0, [], trial)
    ears.tell(trial, ROWS[:told])
    ears.book.on_trial_complete(0, [], trial)
    assert ears.ended == [(status, ROWS[told - 1]["val_slide_auc"], told, False)]
    assert ears.stored()["status"] == status
    assert ears.agenda.is_done


def test_a_trial_that_was_over_is_told_once_and_not_trained(sweep):
    known = TrialRecord(VALUES, 7, False, number=3, status="finished", rows=ROWS, score=0.8, seconds=9.0)
    ears = Ears(sweep, known=known)
    assert ears.ended == [("finished", 0.8, 4, True)]
    assert ears.agenda.next() is None
    assert ears.agenda.is_done
    assert ears.book.records[ears.task.key].number == 0


@pytest.mark.parametrize(("status", "mlflow"), [("finished", "abc"), ("running", "abc")])
def test_a_trial_that_fails_before_it_starts_keeps_what_is_known(sweep, tmp_path, status, mlflow):
    ears = Ears(sweep)
    known = TrialRecord(VALUES, 7, False, number=3, status=status, rows=ROWS, score=0.8, mlflow=mlflow)
    sweep.store.write_json(sweep.record_file(ears.task), known.to_json())
    ears.agenda.next()
    ears.book.on_trial_error(0, [], ears.trial(error_file=error_file(tmp_path, ValueError("wrong"))))
    stored = ears.stored()
    assert (stored["status"], stored["mlflow"]) == ("finished" if status == "finished" else "failed", mlflow)
    assert ears.ended[0][0] == stored["status"]
    assert ears.agenda.is_done


def test_a_lost_trial_is_tried_again_as_often_as_it_may_be(sweep):
    ears = Ears(sweep, max_lost=2)
    starts = 0
    while ears.agenda.next() is not None:
        starts += 1
        ears.book.on_trial_start(0, [], ears.trial())
        ears.tell(ears.trial(), ROWS[:2])
        assert ears.stored()["status"] == "running"
        ears.book.on_trial_error(0, [], ears.trial())
    assert starts == 3
    assert ears.ended == [("failed", 0.6, 2, False)]
    assert "process or node was lost" in ears.stored()["error"]


def test_a_defect_fails_at_once_in_words(sweep, tmp_path):
    ears = Ears(sweep, max_lost=2)
    ears.agenda.next()
    ears.book.on_trial_start(0, [], ears.trial())
    failure = torch.cuda.OutOfMemoryError("CUDA out of memory")
    ears.book.on_trial_error(0, [], ears.trial(error_file=error_file(tmp_path, failure)))
    assert ears.stored()["status"] == "failed"
    assert "CUDA out of memory" in ears.stored()["error"]
    assert ears.agenda.is_done


def task_error(cause):
    return RayTaskError("step", "Traceback", cause)


@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (None, True),
        (ActorDiedError(), True),
        (task_error(ActorDiedError()), True),
        (task_error(StorageError("the server does not answer")), True),
        (task_error(StorageError("so it is")).as_instanceof_cause(), True),
        (task_error(RuntimeError("CUDA out of memory")), False),
        (task_error(RayError("Ray's word for what cannot be pickled")), False),
        (RuntimeError("an error that cannot be read"), False),
    ],
)
def test_lost_is_what_may_go_on_elsewhere(failure, lost):
    assert is_lost(failure) == lost


def test_a_failure_is_told_by_its_last_line_in_short():
    assert in_words(RuntimeError("Traceback\n  somewhere\nCUDA out of memory")) == "CUDA out of memory"
    assert len(in_words(RuntimeError("the actor died, maybe because " * 40))) <= 300


def test_the_records_of_a_search_that_another_job_took_over_stay_as_they_are(sweep):
    lease = take_over(sweep.store, search_folder(sweep.run), run=sweep.run)
    ears = Ears(replace(sweep, lease=lease))
    ears.agenda.next()
    ears.book.on_trial_start(0, [], ears.trial())
    before = sweep.store.read(sweep.record_file(ears.task))
    take_over(sweep.store, search_folder(sweep.run), run=sweep.run)
    ears.tell(ears.trial(is_last=True), ROWS)
    with pytest.raises(TrainingError, match="run s: another job took it over"):
        ears.book.on_trial_complete(0, [], ears.trial(is_last=True))
    assert sweep.store.read(sweep.record_file(ears.task)) == before


def test_a_damaged_record_of_a_trial_is_told_and_another_ones_in_its_place_too(sweep):
    tasks = [Task({"bags.top_k": k}, 7, claim="c") for k in (1, 2)]
    for task in tasks:
        write_trial(sweep, TrialRecord(dict(task.values), 7, False, 0, status="finished", claim="c"))
    first, second = (Path(sweep.store.path(sweep.record_file(task))) for task in tasks)
    whole = first.read_bytes()
    for wrong in (second.read_bytes(), whole.replace(b"finished", b"finishee"), whole[: len(whole) // 2]):
        first.write_bytes(wrong)
        with pytest.raises(StorageError, match="is damaged"):
            read_trials(replace(sweep, claim="c"))
