"""The record of a search: a parent run in MLflow, a child for each trial, and what the terminal is told.

An outage of MLflow costs nothing: trials that end meanwhile are recorded when it answers, or by the next call.
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmil.cohort import Cohort
from distmil.pipeline.job import Job
from distmil.pipeline.training.claim import read_record_id, write_record_id
from distmil.pipeline.tuning.callback import TrialBook
from distmil.pipeline.tuning.report import Outcome
from distmil.pipeline.tuning.trials import Sweep, write_trial
from distmil.processes.interruption import interruption_held
from distmil.search.queue import Agenda
from distmil.search.space import Domain, TrialRecord
from distmil.tracking.provenance import code_tags
from distmil.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

MOST_CHILDREN = 10_000
FLUSH_S = 30.0


@dataclass
class Book:
    """Opens runs, sends what trials tell, and closes every run, whatever ends the search."""

    job: Job
    parent: Tracker
    children: dict[str, Tracker] = field(default_factory=dict)
    """Of the trials that are running, by task."""
    _sweep: Sweep | None = None
    _noted: str | None = None
    """MLflow's id of the parent run, as the store has it."""
    _facts: dict[str, str] = field(default_factory=dict)
    """Parameters of every child."""
    _tags: dict[str, str] = field(default_factory=dict)
    _unsent: dict[str, tuple[Tracker, TrialRecord]] = field(default_factory=dict)
    """Trials that ended and are not recorded to their end, by task."""
    _ends: dict[str, str] = field(default_factory=dict)
    """How the runs of trials that ended are closed, by MLflow's id."""
    _closed: set[str] | None = None
    """MLflow's ids of the children that an earlier call recorded to their end; None: not asked yet."""

    def open(self, sweep: Sweep, space: Mapping[str, Domain], cohort: Cohort) -> None:
        """Start the parent run, or go on with it."""
        store = self.job.store
        self._sweep, earlier = sweep, read_record_id(self.job, sweep.run)
        self._noted = earlier
        if earlier is None:
            self._closed = set()
        self._tags = {"distmil.job": "tune", **code_tags()}
        self._facts = {"data.fingerprint": cohort.fingerprint, "encoder.digest": sweep.spec.digest}
        artifacts = store.path("mlflow-artifacts")
        self.parent.start(sweep.run, artifacts=artifacts, resume=earlier, tags=self._tags)
        self._is_open()
        self.parent.log_params(self.job.config, **self._facts)
        self.parent.log_values({f"space.{key}": f"{d.kind} {list(d.values)}" for key, d in space.items()})

    def trial_book(self, agenda: Agenda) -> TrialBook:
        """Return what keeps the records of some trials, and show how far they are."""
        assert self._sweep is not None
        return TrialBook(self._sweep, agenda, self.start, self.row, Progress(self, agenda.total))

    def start(self, record: TrialRecord) -> None:
        """Open a trial's run, or go on with it where the trial was lost."""
        child = self.children.setdefault(record.task.key, self._child())
        if not child.is_recording:
            self._start(child, record)
        record.mlflow = child.run_id or record.mlflow

    def row(self, record: TrialRecord) -> None:
        """Send a trial's last row; its run may open only now."""
        child = self.children.get(record.task.key)
        if child is None:
            return
        if not child.is_recording:
            self._start(child, record)
        child.log_metrics(record.rows[-1], step=len(record.rows) - 1)

    def end(self, record: TrialRecord) -> None:
        """Close a trial's run, or leave that for later while MLflow does not answer."""
        if self.parent.uri is None:
            return
        key = record.task.key
        self._unsent[key] = self.children.get(key) or self._child(), record
        self.children.pop(key, None)
        self._send_ended()

    def record(self, outcome: Outcome, folder: str) -> None:
        """Record the outcome in the parent run."""
        self.parent.log_metrics(outcome.numbers(), step=0)
        self.parent.set_tags({f"best.{key}": str(value) for key, value in outcome.winner.values.items()})
        self.parent.set_tags({"distmil.verdict": outcome.verdict})
        with tempfile.TemporaryDirectory(prefix="distmil-") as scratch:
            for name in self.job.store.names(folder):
                Path(scratch, name).write_bytes(self.job.store.read(f"{folder}/{name}"))
            self.parent.log_artifact(Path(scratch), "search")

    def finish(self, status: str) -> None:
        """Close every run that is still open, asking MLflow once more though it did not answer."""
        with interruption_held():
            self._finish(status)

    def _finish(self, status: str) -> None:
        self.parent.flush()
        self._send_ended()
        if not self.parent.is_silent:
            for child in self.children.values():
                child.finish("KILLED" if status == "KILLED" else "FAILED")
            self.parent.attempt("the end of trials that were lost", self._close_lost)
        if self._unsent and self.parent.is_recording:
            logger.warning(
                "MLflow lacks the end of %d trials; the same command records it when MLflow answers", len(self._unsent)
            )
        self.parent.finish(status)

    def _child(self) -> Tracker:
        return Tracker(self.parent.uri, self.parent.experiment, flush_s=FLUSH_S)

    def _is_open(self) -> bool:
        """Return whether the parent run is open, after another try where that is worth it."""
        if self.parent.run_id is None and self.parent.is_recording and self._sweep is not None:
            self.parent.set_tags({})
        if self.parent.run_id is None or self._sweep is None:
            return False
        if self._noted != self.parent.run_id:
            write_record_id(self.job.store, self._sweep.run, self.parent.run_id)
            self._noted = self.parent.run_id
        return True

    def _start(self, child: Tracker, record: TrialRecord) -> None:
        """Open a trial's run where the parent is open."""
        if not self._is_open():
            return
        kind = "repeat" if record.is_repeat else "trial"
        child.start(
            f"{kind}-{record.task.key}", artifacts=self.job.store.path("mlflow-artifacts"), resume=record.mlflow,
            tags={**self._tags, "mlflow.parentRunId": str(self.parent.run_id), "distmil.kind": kind},
        )  # fmt: skip
        child.log_values({**record.values, "training.seed": record.seed, **self._facts})
        record.mlflow = child.run_id or record.mlflow

    def _send_ended(self) -> None:
        """Record the trials that ended, one after the other, for as long as MLflow answers."""
        for key, (child, record) in list(self._unsent.items()):
            if self.parent.is_silent or not self._close(child, record):
                return
            del self._unsent[key]

    def _close(self, child: Tracker, record: TrialRecord) -> bool:
        """Record a trial to its end, and return whether that was done."""
        if not self._is_open():
            return not self.parent.is_recording
        if record.mlflow is not None:
            self._ends[record.mlflow] = _end_of(record)
            if record.mlflow in self._recorded():
                return True
        noted = record.mlflow
        if not child.is_recording:
            self._start(child, record)
        child.complete(record.rows)
        child.set_tags({"distmil.status": record.status})
        if not child.finish(_end_of(record)):
            return False
        if child.run_id != noted:
            assert self._sweep is not None
            record.mlflow = child.run_id
            write_trial(self._sweep, record)
        return True

    def _recorded(self) -> set[str]:
        """Return MLflow's ids of the children that an earlier call recorded to their end."""
        if self._closed is None:

            def ask(client: Any, run_id: str) -> None:
                self._closed = {run.info.run_id for run in _children(client, run_id, "FINISHED")}

            self.parent.attempt("which trials were recorded", ask)
        return self._closed or set()

    def _close_lost(self, client: Any, run_id: str) -> None:
        """Close children that a killed driver left open: as their trial ended, else KILLED."""
        for lost in _children(client, run_id, "RUNNING"):
            client.set_terminated(lost.info.run_id, self._ends.get(lost.info.run_id, "KILLED"))


def _end_of(record: TrialRecord) -> str:
    return "FAILED" if record.status == "failed" else "FINISHED"


def _children(client: Any, run_id: str, status: str) -> list[Any]:
    experiment = client.get_run(run_id).info.experiment_id
    which = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = '{status}'"
    return list(client.search_runs([experiment], which, max_results=MOST_CHILDREN))


@dataclass
class Progress:
    """Says how a trial ended."""

    book: Book
    total: int
    done: set[str] = field(default_factory=set)
    best: float | None = None

    def __call__(self, record: TrialRecord, *, was_over: bool) -> None:
        """Close the trial's run, and tell of it where it ended just now."""
        self.done.add(record.task.key)
        self.book.end(record)
        if record.status == "finished" and record.score is not None and not record.is_repeat:
            self.best = record.score if self.best is None else max(self.best, record.score)
        if was_over:
            return
        score = "no score" if record.score is None else f"{record.score:.4f}"
        how = {"finished": "", "stopped": ", ended early", "failed": f", failed: {record.error}"}[record.status]
        best = "" if self.best is None else f"; best {self.best:.4f}"
        what = "training" if record.is_repeat else "trial"
        self.book.job.console.note(
            f"{what} {len(self.done)}/{self.total}: {score} after {len(record.rows)} epochs{how}{best}"
        )
