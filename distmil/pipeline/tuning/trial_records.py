"""The records of a search's trials, kept in the driver: a search that is run again goes on from them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distmil.pipeline.tuning.plan import SearchPlan, clear_trial, read_trial, write_trial
from distmil.search.queue import TrialQueue
from distmil.search.space import WORST, Task, TrialRecord

logger = logging.getLogger(__name__)


@dataclass
class TrialRecords:
    """Writes down what trials report, and tells the queue how they end."""

    plan: SearchPlan
    queue: TrialQueue
    on_start: Callable[[TrialRecord], object]
    on_row: Callable[[TrialRecord], None]
    on_end: Callable[..., None]
    """Takes the record, and whether the trial was over before this search began."""
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """By task."""
    _lost: set[str] = field(default_factory=set)
    """Tasks whose trial reported a failure that may not recur."""
    _started: dict[str, float] = field(default_factory=dict)

    @property
    def running(self) -> list[TrialRecord]:
        """The trials that have not ended."""
        return [record for record in self.records.values() if record.status == "running"]

    def open(self) -> None:
        """Take in the trials that were over before."""
        for record in self.queue.over:
            self._keep(record)

    def start(self, task: Task) -> None:
        """Open a record, or go on with an earlier one; the trial reports all its rows."""
        record = self._begin(task)
        self.on_start(record)
        write_trial(self.plan, record)

    def take(self, task: Task, result: dict[str, Any]) -> None:
        """Take in a row, or a failure."""
        record = self.records[task.key]
        if result["error"] is not None:
            record.error = result["error"]
            if result["is_lost"]:
                self._lost.add(task.key)
            return
        del record.rows[result["epoch"] - 1 :]
        record.rows.append(result["row"])
        record.score = None if result["score"] == WORST else result["score"]
        self.on_row(record)

    def complete(self, task: Task, *, is_last: bool) -> None:
        """Close a trial that trained all its epochs (``is_last``), was ended early, or reported a failure."""
        record = self.records[task.key]
        record.status = "failed" if record.error is not None else "finished" if is_last else "stopped"
        self._close(record)

    def fail(self, task: Task) -> None:
        """Put a trial that was lost back into the queue; close it if it was lost too often, or failed by itself."""
        stored = read_trial(self.plan, task)
        if stored is not None and stored.is_over:
            self.queue.end(task, stored.score)
            self._keep(stored)
            return
        record = self.records.get(task.key) or self._begin(task)
        is_lost = record.error is None or task.key in self._lost
        record.error = record.error or "its process or node was lost"
        if is_lost and self.queue.lose(task):
            logger.warning("trial %s was lost (%s) and is tried again", task.key, record.error)
            self._lost.discard(task.key)
            record.error = None
            return
        record.status = "failed"
        self._close(record)

    def _begin(self, task: Task) -> TrialRecord:
        known = self.records.get(task.key) or read_trial(self.plan, task)
        record = TrialRecord(
            dict(task.values), task.seed, task.is_repeat, number=self.queue.number(task), claim=task.claim,
            mlflow=known.mlflow if known else None,
        )  # fmt: skip
        self.records[task.key] = record
        self._started[task.key] = time.monotonic()
        return record

    def _close(self, record: TrialRecord) -> None:
        record.seconds = time.monotonic() - self._started[record.task.key]
        write_trial(self.plan, record)
        self.queue.end(record.task, record.score if record.is_over else None)
        self.on_end(record, was_over=False)
        if record.is_over:
            clear_trial(self.plan, record.task)

    def _keep(self, record: TrialRecord) -> None:
        """Take in a record that was over before."""
        self.records[record.task.key] = record
        self.on_end(record, was_over=True)
