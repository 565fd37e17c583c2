"""The record of a search in MLflow: a parent run with a child for each trial.

An outage of MLflow costs nothing: trials that end meanwhile are recorded when it answers, or by the next call.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmil.cohort import Cohort
from distmil.pipeline.job import Job
from distmil.pipeline.training.claim import read_record_id, write_record_id
from distmil.pipeline.tuning.plan import SearchPlan, write_trial
from distmil.processes.interruption import interruption_held
from distmil.recording.data import data_of
from distmil.recording.description import command_of, describe_run, job_tags
from distmil.search.report import Outcome
from distmil.search.space import Domain
from distmil.search.trial import Trial
from distmil.tracking.dataset import RunData
from distmil.tracking.provenance import code_tags
from distmil.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

MAX_CHILDREN = 10_000
INTERVAL_S = 30.0
"""Between two calls to MLflow with the rows of a trial that is running."""


@dataclass
class SearchRecord:
    """Makes MLflow's runs equal to the records of the trials, and closes every run, whatever ends the search."""

    job: Job
    parent: Tracker
    children: dict[str, Tracker] = field(default_factory=dict)
    """Of the trials that MLflow does not have to their end, by key."""
    _left: dict[str, Trial] = field(default_factory=dict)
    """Those of them that ended."""
    _plan: SearchPlan | None = None
    _noted: str | None = None
    """MLflow's id of the parent run, as the store has it."""
    _facts: dict[str, str] = field(default_factory=dict)
    """Parameters of every child."""
    _tags: dict[str, str] = field(default_factory=dict)
    _data: RunData | None = None
    _closed: set[str] | None = None
    """MLflow's ids of the children that an earlier call recorded to their end; None: not asked yet."""

    def open(self, plan: SearchPlan, space: Mapping[str, Domain], cohort: Cohort) -> None:
        """Start the parent run, or go on with it."""
        self._plan = plan
        self._noted = read_record_id(self.job, plan.run)
        if self._noted is None:
            self._closed = set()
        self._tags = {**job_tags("tune"), **code_tags()}
        self._data = data_of(cohort, self.job.config)
        self._facts = {"data.fingerprint": cohort.fingerprint, "encoder.digest": plan.spec.digest}
        artifacts = self.job.store.path("mlflow-artifacts")
        self.parent.start(plan.run, artifacts=artifacts, resume=self._noted, tags=self._tags)
        self._is_open()
        self.parent.log_params(self.job.config, **self._facts)
        self.parent.log_data(self._data, context="training")
        self._describe([])
        self.parent.log_values({f"space.{key}": f"{d.kind} {list(d.values)}" for key, d in space.items()})

    def start(self, trial: Trial) -> Tracker:
        """Open a trial's run, or go on with it, where the parent is open, and return its tracker."""
        child = self.children.setdefault(trial.key, Tracker(self.parent.uri, self.parent.experiment))
        if not child.is_recording and self._is_open():
            kind = "repeat" if trial.is_repeat else "trial"
            child.start(
                f"{kind}-{trial.key}", artifacts=self.job.store.path("mlflow-artifacts"), resume=trial.mlflow,
                tags={**self._tags, "mlflow.parentRunId": str(self.parent.run_id), "distmil.kind": kind},
            )  # fmt: skip
            child.log_values({**trial.values, "training.seed": trial.seed, **self._facts})
            if self._data is not None:
                child.log_data(self._data, context="training")
        trial.mlflow = child.run_id or trial.mlflow
        return child

    def row(self, trial: Trial) -> None:
        """Send a trial's rows now and then."""
        if trial.key in self.children:
            self.start(trial).sync(trial.rows, interval_s=INTERVAL_S)

    def end(self, trial: Trial) -> None:
        """Close the run of a trial whose record is written, or leave that for later while MLflow does not answer."""
        self._left[trial.key] = trial
        self._sync_left()

    def record(self, outcome: Outcome, folder: str) -> None:
        """Record the outcome in the parent run."""
        numbers = {name.removeprefix("search_"): value for name, value in outcome.numbers().items()}
        self.parent.log_metrics(numbers, step=0, group="search")
        self._describe([f"Verdict: {outcome.verdict}"])
        self.parent.set_tags({f"best.{key}": str(value) for key, value in outcome.winner.values.items()})
        self.parent.set_tags({"distmil.verdict": outcome.verdict})
        with tempfile.TemporaryDirectory(prefix="distmil-") as scratch:
            for name in self.job.store.names(folder):
                Path(scratch, name).write_bytes(self.job.store.read(f"{folder}/{name}"))
            self.parent.log_artifact(Path(scratch), "search")

    def finish(self, status: str) -> None:
        """Close every run that is still open, asking MLflow once more though it did not answer."""
        with interruption_held():
            self.parent.flush()
            self._sync_left()
            if not self.parent.is_silent:
                for key, child in self.children.items():
                    if key not in self._left:
                        child.finish("KILLED" if status == "KILLED" else "FAILED")
                self.parent.attempt("the end of trials that were lost", self._close_lost)
            if (count := len(self._left)) and self.parent.is_recording:
                logger.warning(
                    "MLflow lacks the end of %d trials; the same command records it when MLflow answers", count
                )
            self.parent.finish(status)

    def _describe(self, verdicts: Sequence[str]) -> None:
        assert self._data is not None
        assert self._plan is not None
        title = f"**Search** `{self._plan.run}` by {self._plan.metric}"
        command = command_of("tune", self.job.config)
        self.parent.set_tags(describe_run(title, self._data, verdicts, command))

    def _is_open(self) -> bool:
        """Return whether the parent run is open, after another try where that is worth it."""
        if self.parent.run_id is None:
            self.parent.set_tags({})
        if self.parent.run_id is None or self._plan is None:
            return False
        if self._noted != self.parent.run_id:
            write_record_id(self.job.store, self._plan.run, self.parent.run_id)
            self._noted = self.parent.run_id
        return True

    def _sync_left(self) -> None:
        """Record the trials that ended, one by one while MLflow answers."""
        for key, trial in list(self._left.items()):
            if self.parent.is_silent or not self._is_recorded(trial):
                return
            del self._left[key]
            self.children.pop(key, None)

    def _is_recorded(self, trial: Trial) -> bool:
        """Record a trial to its end, and return whether that was done."""
        if not self._is_open():
            return not self.parent.is_recording
        if trial.mlflow is not None and trial.mlflow in self._closed_before():
            return True
        noted, child = trial.mlflow, self.start(trial)
        child.sync(trial.rows)
        child.set_tags({"distmil.status": trial.status})
        is_done = child.finish(_end_of(trial))
        trial.mlflow = child.run_id or trial.mlflow
        if trial.mlflow != noted:
            assert self._plan is not None
            write_trial(self._plan, trial)
        return is_done

    def _closed_before(self) -> set[str]:
        """Ask for MLflow's ids of the children that an earlier call recorded to their end."""
        if self._closed is None:

            def ask(client: Any, run_id: str) -> None:
                self._closed = {run.info.run_id for run in _children(client, run_id, "FINISHED")}

            self.parent.attempt("which trials were recorded", ask)
        return self._closed or set()

    def _close_lost(self, client: Any, run_id: str) -> None:
        """Close children that a killed driver left open: as their trial ended, else KILLED."""
        ends = {trial.mlflow: _end_of(trial) for trial in self._left.values()}
        for lost in _children(client, run_id, "RUNNING"):
            client.set_terminated(lost.info.run_id, ends.get(lost.info.run_id, "KILLED"))


def _end_of(trial: Trial) -> str:
    return "FAILED" if trial.status == "failed" else "FINISHED"


def _children(client: Any, run_id: str, status: str) -> list[Any]:
    experiment = client.get_run(run_id).info.experiment_id
    which = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = '{status}'"
    return list(client.search_runs([experiment], which, max_results=MAX_CHILDREN))
