"""The records of a search's trials, without Ray: what Tune tells the book, in whatever order."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from distmil.search import Task, TrialRecord
from distmil.stages.sweeping import TrialBook
from distmil.stages.trials import Sweep
from distmil.storage import Store

ROWS = [{"val_slide_auc": 0.5 + epoch / 10} for epoch in range(4)]


@pytest.fixture
def sweep(tmp_path):
    root = str(Store(str(tmp_path)).root)
    values = {"training": {"num_workers": 1}}
    return Sweep(
        run="s", root=root, values=values, spec=None, metric="slide_auc", is_gpu=False, folds=[], held_out=[], seed=7
    )


def trial_of(values, *, is_last):
    return SimpleNamespace(trial_id="t1", config=values, last_result={"is_last": is_last}, get_error=lambda: None)


def tell(book, trial, rows):
    for epoch, row in enumerate(rows, start=1):
        result = {"epoch": epoch, "row": row, "score": row["val_slide_auc"], "error": None}
        book.on_trial_result(0, [], trial, result)


def book_of(sweep, ended):
    return TrialBook(
        sweep,
        False,
        lambda record: None,
        lambda record: None,
        lambda record, was_over: ended.append((record, was_over)),
    )


def test_a_trial_that_was_over_keeps_its_end_though_a_rung_cuts_its_retelling(sweep):
    task = Task({"bags.top_k": 8}, sweep.seed)
    known = TrialRecord({"bags.top_k": 8}, 7, False, number=3, status="finished", rows=ROWS, score=0.8, seconds=9.0)
    sweep.store.write_json(sweep.record_file(task), known.to_json())
    ended = []
    book, trial = book_of(sweep, ended), trial_of({"bags.top_k": 8}, is_last=False)
    book.on_trial_start(0, [], trial)
    tell(book, trial, ROWS[:1])  # told in another order, it is behind at the first rung and ended there
    book.on_trial_complete(0, [], trial)
    assert ended == [(replace(known, number=0), True)]
    assert sweep.store.read_json(sweep.record_file(task)) == known.to_json()


@pytest.mark.parametrize(("told", "status"), [(4, "finished"), (2, "stopped")])
def test_a_new_trial_ends_as_it_was_told(sweep, told, status):
    ended = []
    book, trial = book_of(sweep, ended), trial_of({"bags.top_k": 8}, is_last=told == len(ROWS))
    book.on_trial_start(0, [], trial)
    tell(book, trial, ROWS[:told])
    book.on_trial_complete(0, [], trial)
    ((record, was_over),) = ended
    assert (record.status, record.score, len(record.rows), was_over) == (
        status,
        ROWS[told - 1]["val_slide_auc"],
        told,
        False,
    )
    assert sweep.store.read_json(sweep.record_file(record.task))["status"] == status
