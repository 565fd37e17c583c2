"""The records of a search's trials, kept in the driver: what a search that is run again goes on from."""

import logging
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayError, RayTaskError

from distmil.errors import StorageError
from distmil.pipeline.tuning.trials import Sweep, clear_trial, read_trial, write_trial
from distmil.search.queue import Agenda
from distmil.search.space import WORST, Task, TrialRecord

logger = logging.getLogger(__name__)

_MOST_WORDS = 300


@dataclass
class TrialBook(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Writes down what Tune tells of trials, and tells the agenda what became of them."""

    sweep: Sweep
    agenda: Agenda
    on_start: Callable[[TrialRecord], None]
    on_row: Callable[[TrialRecord], None]
    on_end: Callable[..., None]
    """Takes the record, and whether the trial was over before this search began."""
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """By task."""
    _started: dict[str, float] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of its callbacks that nobody reads

    @property
    def running(self) -> list[TrialRecord]:
        """Return the trials of which no end is known."""
        return [record for record in self.records.values() if record.status == "running"]

    def open(self) -> None:
        """Take in what was over before."""
        for record in self.agenda.over:
            self._keep(record)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open a record, or go on with an earlier one; the trial tells all its rows."""
        record = self._begin(self.sweep.task(trial.config))
        self.on_start(record)
        self._write(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in a row."""
        record = self.records[self.sweep.task(trial.config).key]
        if result["error"] is not None:
            record.error = result["error"]
            return
        del record.rows[result["epoch"] - 1 :]
        record.rows.append(result["row"])
        record.score = None if result["score"] == WORST else result["score"]
        self.on_row(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close a trial that went to its end, or was ended early."""
        record = self.records[self.sweep.task(trial.config).key]
        if record.error is not None:
            record.status = "failed"
        else:
            record.status = "finished" if trial.last_result.get("is_last") else "stopped"
        self._close(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Leave a trial that was lost to the agenda; close it if it was lost too often, or failed by itself."""
        task = self.sweep.task(trial.config)
        stored = read_trial(self.sweep, task)
        if stored is not None and stored.is_over:
            self.agenda.end(task, stored.score)
            self._keep(stored)
            return
        record = self.records.get(task.key) or self._begin(task)
        failure = read_failure(trial)
        why = in_words(failure)
        if is_lost(failure) and self.agenda.lose(task):
            logger.warning("trial %s was lost (%s) and is tried again", task.key, why)
            return
        record.status, record.error = "failed", why
        self._close(record)

    def _begin(self, task: Task) -> TrialRecord:
        known = self.records.get(task.key) or read_trial(self.sweep, task)
        record = TrialRecord(
            dict(task.values), task.seed, task.is_repeat, number=self.agenda.number(task), claim=task.claim,
            mlflow=known.mlflow if known else None,
        )  # fmt: skip
        self.records[task.key] = record
        self._started[task.key] = time.monotonic()
        return record

    def _close(self, record: TrialRecord) -> None:
        record.seconds = time.monotonic() - self._started[record.task.key]
        self._write(record)
        self.agenda.end(record.task, record.score if record.is_over else None)
        self.on_end(record, was_over=False)
        if record.is_over:
            clear_trial(self.sweep, record.task)

    def _keep(self, record: TrialRecord) -> None:
        """Take in a record that was over before."""
        self.records[record.task.key] = record
        self.on_end(record, was_over=True)

    def _write(self, record: TrialRecord) -> None:
        write_trial(self.sweep, record)


def read_failure(trial: Any) -> BaseException | None:
    """Return what a trial raised, None where its process or node was gone without a word."""
    file = trial.pickled_error_file  # Tune wrote it here just now
    if not file:
        return None
    try:
        found = cloudpickle.loads(Path(file).read_bytes())
    except Exception as error:  # noqa: BLE001 (an exception may refuse to be read in many ways)
        return RuntimeError(f"an error that cannot be read: {error}")
    return found if isinstance(found, BaseException) else None


def is_lost(failure: BaseException | None) -> bool:
    """Return whether a trial may well go on elsewhere: its process, its node or its storage did not hold.

    What else a trial raises, such as a lack of GPU memory, every start would raise again.
    """
    while isinstance(failure, RayTaskError):
        failure = failure.cause
    return failure is None or (isinstance(failure, StorageError | RayError) and type(failure) is not RayError)


def in_words(failure: BaseException | None) -> str:
    """Return a failure's last line, or as much of it as a reader wants: Ray guesses at causes at length."""
    lines = str(failure or "").strip().splitlines()
    return textwrap.shorten(lines[-1], _MOST_WORDS, placeholder=" ...") if lines else "its process or node was lost"
