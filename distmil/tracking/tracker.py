"""The record of a run in MLflow: a projection of results that are kept elsewhere. A failed call is made up later."""

import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distmil.config.root import Config
from distmil.processes.interruption import interruption_held
from distmil.tracking.dataset import RunData
from distmil.tracking.metric_names import metric_name
from distmil.tracking.server import Outage, Row, RunGone, artifact_location, clock, in_short, outage_of

if TYPE_CHECKING:  # it takes seconds to import, and a job without a record does not need it
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MAX_METRICS = 10_000
BATCH = 1000
_MAX_VALUE = 500


def connect(uri: str) -> "MlflowClient":
    """Open this process's client of MLflow."""
    return _library().connect(uri)


def _library() -> ModuleType:
    """Import MLflow, with the first call that needs it."""
    return importlib.import_module("distmil.tracking.mlflow_client")


class Tracker:
    """One MLflow run. No call raises, and after a failure MLflow is not asked for a while.

    The tracker holds the values that the run should have and that MLflow has not confirmed; every call sends all of
    them. A pickled copy logs into the same run and holds no values at first. Threads may share a tracker.
    """

    def __init__(self, uri: str | None, experiment: str, run_id: str | None = None) -> None:
        self.uri, self.experiment, self.run_id = uri, experiment, run_id
        self.experiment_id: str | None = None
        """Known once this process opened the run."""
        self._opening: dict[str, Any] | None = None
        """What a run is opened with."""
        self._metrics: dict[tuple[str, int], tuple[float, int]] = {}
        """By key and step. A metric keeps its time, in ms, so that MLflow records it once though it is sent twice."""
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._data: list[tuple[RunData, str]] = []
        self._rows: Sequence[Row] = ()
        """Metrics by epoch, of which MLflow may have some."""
        self._num_lacked = 0
        self._status: str | None = None
        self._missing: list[str] = []
        """Files that MLflow did not take. They are not kept."""
        self._sent_at_s = float("-inf")
        self._is_gone = False
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type["Tracker"], tuple[str | None, str, str | None]]:
        return Tracker, (self.uri, self.experiment, self.run_id)

    @property
    def place(self) -> dict[str, str | None]:
        """Where the run is, for a job's answer."""
        return {"uri": self.uri, "experiment": self.experiment, "run_id": self.run_id}

    @property
    def is_recording(self) -> bool:
        """Whether there is a run to log into, or one that opens when MLflow answers."""
        return self.uri is not None and not self._is_gone and not (self.run_id is None and self._opening is None)

    @property
    def is_silent(self) -> bool:
        """Whether MLflow failed so recently that it is not asked now."""
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
            self._opening = {
                "experiment": self.experiment, "name": name, "resume": resume, "tags": dict(tags or {}),
                "artifacts": None if is_server else artifact_location(artifacts),
            }  # fmt: skip
            self._send()

    def log_params(self, config: Config, **more: Any) -> None:
        """Record every key of the configuration except paths, and other values; a resumed run keeps those it has."""
        self.log_values(config.shareable() | more)

    def log_values(self, values: Mapping[str, Any]) -> None:
        """Record values by dotted key as the run's parameters; a resumed run keeps those it has."""
        with self._lock:
            self._params |= {key: str(value)[:_MAX_VALUE] for key, value in values.items()}
            self._send()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        with self._lock:
            self._tags |= tags
            self._send()

    def log_data(self, data: RunData, *, context: str) -> None:
        """Record what data the run reads, and what for: ``training``, ``evaluation`` or ``prediction``."""
        with self._lock:
            self._data.append((data, context))
            self._send()

    def log_metrics(self, metrics: Row, *, step: int, group: str | None = None) -> None:
        """Record metrics of a step; undefined ones are left out. In an outage the latest ``MAX_METRICS`` are kept.

        Args:
            metrics: Values by name; ``metric_name`` makes MLflow's names of them.
            step: The epoch.
            group: The section of MLflow's charts; None: metrics of an epoch's row.
        """
        with self._lock:
            self._hold(metrics, step, group)
            self._send()

    def sync(self, rows: Sequence[Row], *, interval_s: float = 0.0) -> int:
        """Record the metrics of every epoch that the run does not have, whoever should have recorded them.

        Args:
            rows: Metrics by epoch, as they are committed elsewhere.
            interval_s: The rows wait for the next call if MLflow was sent something less than this ago.

        Returns:
            How many epochs MLflow lacked; 0 where it was not asked or did not answer.
        """
        with self._lock:
            self._rows, self._num_lacked = rows, 0
            if time.monotonic() >= self._sent_at_s + interval_s:
                self._send()
            return self._num_lacked

    def flush(self) -> None:
        """Send everything, however recently MLflow failed."""
        with self._lock:
            self._send(at_once=True)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a local file, or the files of a local folder."""

        def send(client: "MlflowClient", run_id: str) -> None:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            else:
                client.log_artifact(run_id, str(path), folder)

        self.attempt(folder or path.name, send)

    def attempt(self, what: str, work: Callable[["MlflowClient", str], object]) -> bool:
        """Call MLflow for something that cannot wait, and return whether it was done.

        Args:
            what: A name of what is missing if it fails, for the warning at the end of the run.
            work: Called with the client and the run's id, after everything that was held back is sent.
        """
        with self._lock:
            done: list[object] = []
            if self._send():
                self._guard(lambda client: self._ask(client, lambda run_id: done.append(work(client, run_id))))
            if not done and self.is_recording:
                self._missing.append(what)
            return bool(done)

    def finish(self, status: str) -> bool:
        """Send everything, however recently MLflow failed, and close the run as FINISHED, FAILED or KILLED.

        Returns:
            Whether nothing is left to send: MLflow took it all, or there is no run.
        """
        with self._lock:
            if not self.is_recording:
                return True
            self._status = status
            self._send(at_once=True)
            if self._is_gone:
                return True
            metrics, parameters = self._metrics or self._rows, self._params
            held = {"metrics": metrics, "parameters": parameters, "tags": self._tags, "data": self._data}
            words = [name for name, values in held.items() if values] + (["the end of the run"] if self._status else [])
            if missing := [*words, *self._missing]:
                began = self._outage.began
                since = f"MLflow did not answer from {clock(began)}: " if began else "MLflow: "
                logger.warning("%smissing in the record: %s", since, ", ".join(missing))
            self._missing = []
            return self._status is None

    @property
    def _outage(self) -> Outage:
        return outage_of(str(self.uri))

    def _hold(self, metrics: Row, step: int, group: str | None = None) -> bool:
        """Take in the defined metrics of a step, and return whether one was not held already."""
        time_ms, before = time.time_ns() // 1_000_000, len(self._metrics)
        for name, value in metrics.items():
            if value is not None:
                key = metric_name(name, group)
                self._metrics.setdefault((key, step), (value, time_ms))
        is_new = len(self._metrics) > before
        while len(self._metrics) > MAX_METRICS:
            del self._metrics[next(iter(self._metrics))]
        return is_new

    def _send(self, *, at_once: bool = False) -> bool:
        """Open the run and send everything, unless MLflow failed just now; return whether MLflow has it."""
        if not self.is_recording or not (at_once or self._outage.may_try()) or not self._guard(self._project):
            return False
        self._sent_at_s = time.monotonic()
        if (began := self._outage.end()) is not None:
            ended = datetime.now().astimezone()
            logger.info("MLflow did not answer from %s to %s; the record goes on", clock(began), clock(ended))
        return True

    def _guard(self, work: Callable[["MlflowClient"], None]) -> bool:
        """Call MLflow and return whether it went well; the first failure of an outage is logged."""
        started_s = time.monotonic()
        try:
            with interruption_held():
                work(connect(str(self.uri)))
        except RunGone:
            self._is_gone = True
            logger.warning("the run %s was deleted in MLflow; the work goes on without its record", self.run_id)
            return False
        except Exception as error:  # noqa: BLE001 (the record must never stop the work)
            if self._outage.fail(took_s=time.monotonic() - started_s):
                logger.warning(
                    "MLflow does not answer (%s); the work goes on, and what can wait is recorded when it does",
                    in_short(error),
                )
            return False
        return True

    def _project(self, client: "MlflowClient") -> None:
        """Make the run equal to the values that it should have."""
        library = _library()
        if self.run_id is None:
            assert self._opening is not None
            self.run_id, self.experiment_id = library.open_run(client, **self._opening)
        if self._rows:
            recorded = library.recorded_steps(client, self.run_id, self._rows)
            rows = [(epoch, row) for epoch, row in enumerate(self._rows) if epoch not in recorded]
            self._num_lacked = sum(self._hold(row, epoch) for epoch, row in rows)
            self._rows = ()
        if self._params:  # MLflow refuses another value
            known = self._ask(client, lambda run_id: client.get_run(run_id).data.params) or {}
            self._params = {key: value for key, value in self._params.items() if key not in known}
        while self._metrics or self._params or self._tags:
            batch = dict(islice(self._metrics.items(), BATCH))
            values = {"metrics": batch, "params": self._params, "tags": self._tags}
            self._ask(client, partial(library.send_values, client, **values))
            self._metrics = {key: metric for key, metric in self._metrics.items() if key not in batch}
            self._params, self._tags = {}, {}
        if self._data:
            self._ask(client, partial(library.send_data, client, data=self._data))
            self._data = []
        if self._status is not None:
            self._ask(client, partial(client.set_terminated, status=self._status))
            self._status = None

    def _ask(self, client: "MlflowClient", call: Callable[[str], Any]) -> Any:
        """Call MLflow with the run's id; see ``ask``. Raises: RunGone."""
        return _library().ask(client, str(self.run_id), call)
