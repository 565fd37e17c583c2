"""The record of a run in MLflow. It may fail at any time: that is logged once, and nothing stops for it."""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from distmil.config import Config
from distmil.storage import DEFAULT_ROOT

logger = logging.getLogger(__name__)

P = ParamSpec("P")
# Paths name people, projects and machines; they do not belong into a shared record.
_PRIVATE = ("cohort.manifest", "storage.root", "prediction.model", "tracking.uri")
_MAX_VALUE = 500


def resolve_uri(uri: str | None, root: str) -> str | None:
    """Return the tracking URI: the given one, else SQLite under a local storage root, else under ``~/.distmil``."""
    if uri is not None:
        return None if uri == "none" else uri
    folder = Path(DEFAULT_ROOT).expanduser() if "://" in root else Path(root)
    return f"sqlite:///{folder / 'mlflow.db'}"


def guarded(method: Callable[P, None]) -> Callable[P, None]:
    """Log a failing call once and switch the tracker off, whatever the failure is."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        tracker = args[0]
        assert isinstance(tracker, Tracker)
        if tracker.uri is None or tracker.is_broken:
            return
        try:
            method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 (the record must never stop the work)
            tracker.is_broken = True
            text = str(error).splitlines()[0] if str(error) else ""
            logger.warning("MLflow failed (%s: %s); the run goes on without its record", type(error).__name__, text)

    return call


@dataclass
class Tracker:
    """One MLflow run. Holds only what pickles, so that it travels to the training controller."""

    uri: str | None
    experiment: str
    run_id: str | None = None
    is_broken: bool = field(default=False)

    @guarded
    def start(self, name: str, *, artifacts: str, resume: str | None = None) -> None:
        """Create the run, or go on with an earlier one of that id if it is still there.

        Args:
            name: The run's name.
            artifacts: Folder or URI for the artifacts of a new experiment.
            resume: Id of the run to go on with.
        """
        client = self._client
        if resume is not None and _exists(client, resume):
            self.run_id = resume
            client.set_terminated(resume, "RUNNING")
            return
        found = client.get_experiment_by_name(self.experiment)
        location = None if self._is_remote else artifacts
        experiment = found.experiment_id if found else client.create_experiment(self.experiment, location)
        self.run_id = client.create_run(experiment, run_name=name).info.run_id

    @guarded
    def log_params(self, config: Config, **more: Any) -> None:
        """Record every key of the configuration but paths, and what else is given; a resumed run keeps what it has."""
        values = {key: value for key, value in config.flat().items() if key not in _PRIVATE}
        if (weights := str(values["encoder.weights"])) != "none":
            values["encoder.weights"] = Path(weights).name
        known = self._client.get_run(self.run_id).data.params  # MLflow refuses another value
        params = [Param(key, str(value)[:_MAX_VALUE]) for key, value in (values | more).items() if key not in known]
        for i in range(0, len(params), 100):
            self._client.log_batch(self.run_id, params=params[i : i + 100])

    @guarded
    def log_metrics(self, metrics: Mapping[str, float | None], *, step: int) -> None:
        """Record metrics of a step; what is not defined is left out."""
        time_ms = time.time_ns() // 1_000_000
        found = [Metric(key, value, time_ms, step) for key, value in metrics.items() if value is not None]
        self._client.log_batch(self.run_id, metrics=found)

    @guarded
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a local file, or what a local folder holds."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    @guarded
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    @guarded
    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        if self.run_id is not None:
            self._client.set_terminated(self.run_id, status)

    @property
    def _is_remote(self) -> bool:
        return str(self.uri).startswith(("http://", "https://"))

    @property
    def _client(self) -> MlflowClient:
        return _connect(str(self.uri))


@functools.cache
def _connect(uri: str) -> MlflowClient:
    """Return this process's client; opening an SQLite store checks its tables, which takes a while."""
    for variable, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
        os.environ.setdefault(variable, value)
    for name in ("mlflow", "alembic"):  # MLflow sets its own level when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except Exception:  # noqa: BLE001 (any answer but the run means that it is not there)
        return False
