"""MLflow's client as distmil uses it: quick to give up, silent, and one of a kind for each address."""

import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database

from distmil.storage.object_store import s3_endpoint, without_options
from distmil.storage.roots import DEFAULT_ROOT
from distmil.tracking.metric_names import metric_name

Row = Mapping[str, float | None]

RETRY_S = 30.0
# A call that takes long to fail waits longer for its next try: at most this share of the time goes into failing.
MAX_SHARE = 0.1
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
REFUSED = {*_ABSENT, "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "ENDPOINT_NOT_FOUND"}
"""A server too old for a call answers ENDPOINT_NOT_FOUND."""
# MLflow's own defaults retry for minutes, print to stdout, and wait for as long as a proxy asks them to.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_DATABASE_TRIES = 3
S3_VARIABLE = "MLFLOW_S3_ENDPOINT_URL"


def resolve_uri(uri: str | None, root: str) -> str | None:
    """Resolve the tracking URI: the given one, else SQLite under a local storage root, else under ``~/.distmil``."""
    if uri is not None:
        return None if uri == "none" else uri
    folder = Path(DEFAULT_ROOT).expanduser() if "://" in root else Path(root)
    return f"sqlite:///{folder / 'mlflow.db'}"


def artifact_location(folder: str) -> str:
    """Write a folder or URI as MLflow takes it, and let MLflow's S3 client find the server that the URI names."""
    if "://" not in folder:
        return folder
    if endpoint := s3_endpoint(folder):
        os.environ.setdefault(S3_VARIABLE, endpoint)
    return without_options(folder)


@functools.cache
def connect(uri: str) -> MlflowClient:
    """Open this process's client; opening an SQLite store checks its tables, which takes a while."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    database.MAX_RETRY_COUNT = min(database.MAX_RETRY_COUNT, _DATABASE_TRIES)  # its ten take minutes
    for name in ("mlflow", "alembic"):  # MLflow sets its own level when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


@dataclass
class Outage:
    """Since when a server does not answer, and when it is asked again."""

    began: datetime | None = None
    retry_at_s: float = 0.0

    def fail(self, *, took_s: float) -> bool:
        """Note a failed call and how long it took, and return whether the outage begins with it."""
        self.retry_at_s = time.monotonic() + max(RETRY_S, took_s / MAX_SHARE)
        is_new = self.began is None
        self.began = self.began or datetime.now().astimezone()
        return is_new

    def may_try(self) -> bool:
        """Return whether a call is worth its time."""
        return self.began is None or time.monotonic() >= self.retry_at_s

    def end(self) -> datetime | None:
        """Note an answer, and return when the outage began that it ended."""
        began, self.began = self.began, None
        return began


@functools.cache
def outage_of(uri: str) -> Outage:
    """Return the outage of a server, which all runs of this process share."""
    return Outage()


def find_active(client: MlflowClient, run_id: str) -> Run | None:
    """Find a run, None if it does not exist or is deleted. Raises: MlflowException where MLflow does not answer."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def open_run(
    client: MlflowClient, *, experiment: str, name: str, artifacts: str | None, resume: str | None, tags: dict[str, str]
) -> tuple[str, str]:
    """Go on with an earlier run if it is still there, else create a run; return its id and its experiment's."""
    if resume is not None and (run := find_active(client, resume)) is not None:
        client.update_run(resume, status="RUNNING")
        client.log_batch(resume, tags=[RunTag(*item) for item in tags.items()])
        return resume, str(run.info.experiment_id)
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifacts)
    return str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id), str(experiment_id)


def recorded_steps(client: MlflowClient, run_id: str, rows: Sequence[Row]) -> set[int]:
    """List the steps of which a run has the metric that is defined in most rows."""
    defined = Counter(key for row in rows for key, value in row.items() if value is not None)
    if not defined:
        return set(range(len(rows)))
    name = metric_name(defined.most_common(1)[0][0])
    return {metric.step for metric in client.get_metric_history(run_id, name)}


@contextmanager
def closing_run(finish: Callable[[str], object]) -> Iterator[None]:
    """Call ``finish`` with how the block ended: FINISHED, KILLED if it was interrupted, or FAILED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        finish(status)


def in_short(error: BaseException) -> str:
    """Word an error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def clock(moment: datetime) -> str:
    """Word a time of day."""
    return f"{moment:%H:%M:%S}"
