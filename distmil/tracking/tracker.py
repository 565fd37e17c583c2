"""The record of a run in MLflow. It stops nothing: what MLflow does not take is sent when it answers again."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from distmil.config.root import PRIVATE_KEYS, Config
from distmil.processes.interruption import interruption_held
from distmil.storage.object_store import s3_endpoint, without_options
from distmil.storage.roots import DEFAULT_ROOT
from distmil.tracking.mlflow_client import REFUSED, connect, is_active, outage_of, recorded_steps
from distmil.tracking.outbox import BATCH, Backlog, Outage, Point, Row, counted

logger = logging.getLogger(__name__)

_MAX_VALUE = 500
_S3_VARIABLE = "MLFLOW_S3_ENDPOINT_URL"


def resolve_uri(uri: str | None, root: str) -> str | None:
    """Return the tracking URI: the given one, else SQLite under a local storage root, else under ``~/.distmil``."""
    if uri is not None:
        return None if uri == "none" else uri
    folder = Path(DEFAULT_ROOT).expanduser() if "://" in root else Path(root)
    return f"sqlite:///{folder / 'mlflow.db'}"


def artifact_location(folder: str) -> str:
    """Return a folder or URI as MLflow takes it, and let MLflow's S3 client find the server that the URI names."""
    if "://" not in folder:
        return folder
    if endpoint := s3_endpoint(folder):
        os.environ.setdefault(_S3_VARIABLE, endpoint)
    return without_options(folder)


def recorded_values(config: Config) -> dict[str, Any]:
    """Return every key of a configuration, dotted, with its value, but for paths."""
    values = {key: value for key, value in config.flat().items() if key not in PRIVATE_KEYS}
    return values | {"encoder.weights": config.encoder.weights_name}


@dataclass(frozen=True)
class _Opening:
    """What it takes to open a run."""

    name: str
    artifacts: str | None
    """None: where the server puts them."""
    resume: str | None
    tags: dict[str, str]


class _RunGone(Exception):
    """The run was deleted in MLflow."""


@dataclass
class Tracker:
    """One MLflow run. No call raises; after a failure none is tried for a while, and what the run is told waits.

    A pickled copy logs into the same run and takes nothing along that waits. Threads may share a tracker.
    """

    uri: str | None
    experiment: str
    run_id: str | None = None
    flush_s: float = 0.0
    """Metrics wait until the last were sent so many seconds ago."""
    _opening: _Opening | None = field(default=None, init=False, repr=False, compare=False)
    _backlog: Backlog = field(default_factory=Backlog, init=False, repr=False, compare=False)
    _sent_at_s: float = field(default=float("-inf"), init=False, repr=False, compare=False)
    _is_gone: bool = field(default=False, init=False, repr=False, compare=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type["Tracker"], tuple[str | None, str, str | None, float]]:
        return Tracker, (self.uri, self.experiment, self.run_id, self.flush_s)

    @property
    def is_recording(self) -> bool:
        """Return whether there is a run to log into, or one that opens when MLflow answers."""
        return self.uri is not None and not self._is_gone and not (self.run_id is None and self._opening is None)

    @property
    def is_silent(self) -> bool:
        """Return whether MLflow failed so short ago that it is not asked now."""
        return self.uri is not None and not self._outage.may_try()

    def start(
        self, name: str, *, artifacts: str, resume: str | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Create the run, or go on with an earlier one of that id if it is still there.

        Args:
            name: The run's name.
            artifacts: Folder or URI for the artifacts of a new experiment.
            resume: Id of the run to go on with.
            tags: Tags of the run, such as ``mlflow.parentRunId``.
        """
        with self._lock:
            self.run_id = None
            is_server = str(self.uri).startswith(("http://", "https://"))
            location = None if is_server else artifact_location(artifacts)
            self._opening = _Opening(name, location, resume, dict(tags or {}))
            self._send()

    def log_params(self, config: Config, **more: Any) -> None:
        """Record every key of the configuration but paths, and what else is given; a resumed run keeps what it has."""
        self.log_values(recorded_values(config) | more)

    def log_values(self, values: Mapping[str, Any]) -> None:
        """Record values by dotted key as the run's parameters; a resumed run keeps what it has."""
        self._add(lambda backlog: backlog.params.update({k: str(v)[:_MAX_VALUE] for k, v in values.items()}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        self._add(lambda backlog: backlog.tags.update(tags))

    def log_metrics(self, metrics: Row, *, step: int) -> None:
        """Record metrics of a step; what is not defined is left out."""
        self._add(lambda backlog: backlog.add(metrics, step=step), wait_s=self.flush_s)

    def complete(self, rows: Sequence[Row]) -> None:
        """Record the metrics of every epoch that the run does not have, whoever should have recorded them."""
        with self._lock:
            if self.is_recording:
                self._backlog.rows = rows
                self._send()

    def flush(self) -> None:
        """Send what waits, however short ago MLflow failed."""
        with self._lock:
            self._send(at_once=True)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a local file, or what a local folder holds."""

        def send(client: MlflowClient, run_id: str) -> None:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            else:
                client.log_artifact(run_id, str(path), folder)

        self.attempt(folder or path.name, send)

    def attempt(self, what: str, work: Callable[[MlflowClient, str], None]) -> bool:
        """Do something with MLflow that cannot wait, after all that waits, and return whether it was done.

        Args:
            what: What is missing where it fails, in words.
            work: Called with the client and the run's id.
        """
        with self._lock:
            if not self.is_recording:
                return False
            done: list[str] = []

            def call(client: MlflowClient, run_id: str) -> None:
                work(client, run_id)
                done.append(what)

            if self._send():
                self._guard(lambda client: self._ask(client, lambda run_id: call(client, run_id)))
            if not done and self.is_recording:
                self._backlog.files.append(what)
            return bool(done)

    def finish(self, status: str) -> bool:
        """Send what waits, however short ago MLflow failed, and close the run as FINISHED, FAILED or KILLED.

        Returns:
            Whether nothing is left to send: MLflow took it all, or there is no run.
        """
        with self._lock:
            if not self.is_recording:
                return True
            self._backlog.status = status
            self._send(at_once=True)
            if missing := [*self._backlog.waiting(), *self._backlog.lost()]:
                began = self._outage.began
                since = f"MLflow did not answer from {_clock(began)}: " if began else "MLflow: "
                logger.warning("%s%s missing in the record", since, _listed(missing))
            return self._backlog.status is None

    @property
    def _outage(self) -> Outage:
        return outage_of(str(self.uri))

    def _add(self, change: Callable[[Backlog], None], *, wait_s: float = 0.0) -> None:
        with self._lock:
            if not self.is_recording:
                return
            change(self._backlog)
            if len(self._backlog.metrics) >= BATCH or time.monotonic() >= self._sent_at_s + wait_s:
                self._send()

    def _send(self, *, at_once: bool = False) -> bool:
        """Open the run and send what waits, unless MLflow failed just now; return whether it has everything."""
        if not self.is_recording or not (at_once or self._outage.may_try()):
            return False
        before = self._backlog.num_taken
        if not self._guard(self._send_backlog):
            return False
        self._sent_at_s = time.monotonic()
        if (began := self._outage.end()) is not None:
            late, lost = self._backlog.num_taken - before, self._backlog.lost()
            logger.log(
                logging.WARNING if lost else logging.INFO,
                "MLflow did not answer from %s to %s; %s sent later%s",
                _clock(began),
                _clock(datetime.now().astimezone()),
                counted(late, "metric was", "metrics were"),
                f"; {_listed(lost)} missing" if lost else "",
            )
        return True

    def _guard(self, work: Callable[[MlflowClient], None]) -> bool:
        """Do something with MLflow and return whether it went well; say it once where it did not."""
        started_s = time.monotonic()
        try:
            with interruption_held():
                work(connect(str(self.uri)))
        except _RunGone:
            self._is_gone = True
            logger.warning("the run %s was deleted in MLflow; the work goes on without its record", self.run_id)
            return False
        except Exception as error:  # noqa: BLE001 (the record must never stop the work)
            if self._outage.fail(took_s=time.monotonic() - started_s):
                logger.warning(
                    "MLflow does not answer (%s); the work goes on, and what can wait is recorded when it does",
                    _in_short(error),
                )
            return False
        return True

    def _open(self, client: MlflowClient, opening: _Opening) -> str:
        """Return the id of the run that goes on, else of a new one."""
        if opening.resume is not None and is_active(client, opening.resume):
            client.update_run(opening.resume, status="RUNNING")
            self._backlog.tags = {**opening.tags, **self._backlog.tags}
            return opening.resume
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment, opening.artifacts)
        return str(client.create_run(experiment, tags=opening.tags, run_name=opening.name).info.run_id)

    def _send_backlog(self, client: MlflowClient) -> None:
        waiting = self._backlog
        if self.run_id is None:
            assert self._opening is not None
            self.run_id = self._open(client, self._opening)
        if waiting.rows:
            missing = waiting.add_missing(recorded_steps(client, self.run_id, waiting.rows))
            if missing and self._outage.began is None:
                logger.info("MLflow lacked the metrics of %s; they are sent now", counted(missing, "epoch", "epochs"))
        if waiting.params:  # MLflow refuses another value
            known = self._ask(client, lambda run_id: client.get_run(run_id).data.params) or {}
            waiting.params = {key: value for key, value in waiting.params.items() if key not in known}
        while waiting.metrics or waiting.params or waiting.tags:
            batch = waiting.batch()
            self._send_batch(client, batch)
            waiting.took(batch)
        if waiting.status is not None:
            self._ask(client, lambda run_id: client.set_terminated(run_id, waiting.status))
            waiting.status = None

    def _send_batch(self, client: MlflowClient, batch: Sequence[Point]) -> None:
        metrics = [Metric(*point) for point in batch]
        params = [Param(*item) for item in self._backlog.params.items()]
        tags = [RunTag(*item) for item in self._backlog.tags.items()]
        self._ask(
            client,
            lambda run_id: client.log_batch(run_id, metrics=metrics, params=params, tags=tags, synchronous=True),
        )

    def _ask(self, client: MlflowClient, call: Callable[[str], Any]) -> Any:
        """Return what MLflow answers; what it refuses for good is said, and is not sent again. Raises: _RunGone."""
        assert self.run_id is not None
        try:
            return call(self.run_id)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if not is_active(client, self.run_id):
                raise _RunGone from error
            logger.warning("MLflow refused a part of the record (%s)", _in_short(error))
            return None


def _in_short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}"


def _listed(words: Sequence[str]) -> str:
    """Return words as a list with its verb, such as `a, b are`."""
    is_one = len(words) == 1 and (words[0].startswith("1 ") or not words[0][0].isdigit())
    return f"{', '.join(words)} {'is' if is_one else 'are'}"
