"""MLflow's client as distmil uses it: quick to give up, silent, and one of a kind for each address.

MLflow takes seconds to import, so the tracker imports this module with the first run that has a record.
"""

import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from distmil.tracking.dataset import RunData
from distmil.tracking.metric_names import metric_name
from distmil.tracking.server import Row, RunGone, in_short

logger = logging.getLogger(__name__)

_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
_REFUSED = {*_ABSENT, "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "ENDPOINT_NOT_FOUND"}
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


@functools.cache
def connect(uri: str) -> MlflowClient:
    """Open this process's client; opening an SQLite store checks its tables, which takes a while."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    database.MAX_RETRY_COUNT = min(database.MAX_RETRY_COUNT, _DATABASE_TRIES)  # its ten take minutes
    for name in ("mlflow", "alembic"):  # MLflow sets its own level when it is imported
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


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


def ask(client: MlflowClient, run_id: str, call: Callable[[str], Any]) -> Any:
    """Call MLflow with a run's id; a value that it refuses for good is logged and dropped.

    Raises:
        RunGone: If the run was deleted.
        MlflowException: If MLflow does not answer.
    """
    try:
        return call(run_id)
    except MlflowException as error:
        if error.error_code not in _REFUSED:
            raise
        if find_active(client, run_id) is None:
            raise RunGone from error
        logger.warning("MLflow refused a part of the record (%s)", in_short(error))
        return None


def send_values(
    client: MlflowClient, run_id: str, metrics: Mapping[tuple[str, int], tuple[float, int]], params: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:  # fmt: skip
    """Record values of a run.

    Args:
        client: MLflow's.
        run_id: The run.
        metrics: Value and time in ms, by name and step.
        params: Values by key.
        tags: Values by name.
    """
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, time_ms, step) for (key, step), (value, time_ms) in metrics.items()],
        params=[Param(*item) for item in params.items()],
        tags=[RunTag(*item) for item in tags.items()],
        synchronous=True,
    )


def send_data(client: MlflowClient, run_id: str, data: Sequence[tuple[RunData, str]]) -> None:
    """Record the data of a run, each with its context, which says what the run does with it."""
    client.log_inputs(run_id, datasets=[as_input(found, context) for found, context in data])


def as_input(data: RunData, context: str) -> DatasetInput:
    """Make MLflow's input."""
    found = Dataset(data.name, data.digest, source_type="manifest", source="{}", profile=json.dumps(data.profile))
    return DatasetInput(found, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
