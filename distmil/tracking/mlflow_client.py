"""MLflow's client as distmil uses it: quick to give up, silent, and one of a kind for each address."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database

from distmil.tracking.outbox import Outage, Row

_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
REFUSED = {*_ABSENT, "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
# MLflow's own defaults retry for minutes, print to stdout, and wait for as long as a proxy asks them to.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_DATABASE_TRIES = 3


@functools.cache
def connect(uri: str) -> MlflowClient:
    """Return this process's client; opening an SQLite store checks its tables, which takes a while."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    database.MAX_RETRY_COUNT = min(database.MAX_RETRY_COUNT, _DATABASE_TRIES)  # its ten take minutes
    for name in ("mlflow", "alembic"):  # MLflow sets its own level when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


@functools.cache
def outage_of(uri: str) -> Outage:
    """Return what this process knows of a server's silence: many runs of a sweep need not find it out one by one."""
    return Outage()


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Return whether a run is there and not deleted. Raises: MlflowException where MLflow does not answer."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return False
        raise


def recorded_steps(client: MlflowClient, run_id: str, rows: Sequence[Row]) -> set[int]:
    """Return the steps of which a run has the metric that is defined in most rows."""
    defined = Counter(key for row in rows for key, value in row.items() if value is not None)
    if not defined:
        return set(range(len(rows)))
    return {metric.step for metric in client.get_metric_history(run_id, defined.most_common(1)[0][0])}
