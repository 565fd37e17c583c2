"""The records of a search's trials, kept in the driver: a search that is run again goes on from them."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from distmil.pipeline.tuning.plan import SearchPlan, clear_trial, read_trial, write_trial
from distmil.pipeline.tuning.record import SearchRecord
from distmil.search.queue import TrialQueue
from distmil.search.trial import WORST, Trial, best_trial

logger = logging.getLogger(__name__)


@dataclass
class TrialRecords:
    """Writes down what trials report, tells the queue how they end, and shows them in MLflow and on the terminal."""

    plan: SearchPlan
    queue: TrialQueue
    record: SearchRecord
    trials: dict[str, Trial] = field(default_factory=dict)
    """By key."""
    _lost: set[str] = field(default_factory=set)
    """Keys of trials that reported a failure that may not recur."""
    _started: dict[str, float] = field(default_factory=dict)

    @property
    def running(self) -> list[Trial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials.values() if trial.status == "running"]

    def open(self) -> None:
        """Take in the trials that were over before."""
        for trial in self.queue.over:
            self._keep(trial)

    def start(self, trial: Trial) -> None:
        """Open a record, or go on with an earlier one; the trial reports all its rows."""
        begun = self._begin(trial)
        self.record.start(begun)
        write_trial(self.plan, begun)

    def take(self, key: str, result: dict[str, Any]) -> None:
        """Take in a row, or a failure."""
        trial = self.trials[key]
        if result["error"] is not None:
            trial.error = result["error"]
            if result["is_lost"]:
                self._lost.add(key)
            return
        del trial.rows[result["epoch"] - 1 :]
        trial.rows.append(result["row"])
        trial.score = None if result["score"] == WORST else result["score"]
        self.record.row(trial)

    def complete(self, key: str, *, is_last: bool) -> None:
        """Close a trial that trained all its epochs (``is_last``), was ended early, or reported a failure."""
        trial = self.trials[key]
        trial.status = "failed" if trial.error is not None else "finished" if is_last else "stopped"
        self._close(trial)

    def fail(self, given: Trial) -> None:
        """Put a trial that was lost back into the queue; close it if it was lost too often, or failed by itself."""
        stored = read_trial(self.plan, given)
        if stored is not None and stored.is_over:
            self.queue.end(given, stored.score)
            self._keep(stored)
            return
        trial = self.trials.get(given.key) or self._begin(given)
        is_lost = trial.error is None or trial.key in self._lost
        trial.error = trial.error or "its process or node was lost"
        if is_lost and self.queue.lose(given):
            logger.warning("trial %s was lost (%s) and is tried again", trial.key, trial.error)
            self._lost.discard(trial.key)
            trial.error = None
            return
        trial.status = "failed"
        self._close(trial)

    def _begin(self, given: Trial) -> Trial:
        """Make the record of a trial that starts from its first epoch."""
        known = self.trials.get(given.key) or read_trial(self.plan, given)
        trial = Trial(
            given.values, given.seed, given.is_repeat, given.number, claim=given.claim,
            mlflow=known.mlflow if known else None,
        )  # fmt: skip
        self.trials[trial.key] = trial
        self._started[trial.key] = time.monotonic()
        return trial

    def _close(self, trial: Trial) -> None:
        trial.seconds = time.monotonic() - self._started[trial.key]
        write_trial(self.plan, trial)
        self.queue.end(trial, trial.score if trial.is_over else None)
        self.record.end(trial)
        self._show(trial)
        if trial.is_over:
            clear_trial(self.plan, trial)

    def _keep(self, trial: Trial) -> None:
        """Take in a trial that was over before."""
        self.trials[trial.key] = trial
        self.record.end(trial)

    def _show(self, trial: Trial) -> None:
        """Report the end of a trial on the terminal."""
        ended = [other for other in self.trials.values() if other.status != "running"]
        score = "no score" if trial.score is None else f"{trial.score:.4f}"
        how = {"stopped": ", ended early", "failed": f", failed: {trial.error}"}.get(trial.status, "")
        best = best_trial([other for other in ended if not other.is_repeat])
        self.record.job.console.note(
            f"{'training' if trial.is_repeat else 'trial'} {len(ended)}/{self.queue.total}: {score} after "
            f"{len(trial.rows)} epochs{how}" + (f"; best {best.score:.4f}" if best else "")
        )
