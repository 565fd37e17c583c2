"""A saved model in MLflow: recorded with its run, and registered."""

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from distmil.tracking.tracker import Tracker
from distmil.tracking.training_run import DIGEST

NAME = "model"
# MLflow answers to this alias by itself with the newest version, and lets nobody set it.
LATEST = "latest"


def log_model(tracker: Tracker, folder: Path, *, digest: str, step: int, registered: str | None, alias: str) -> None:
    """Record a saved model with its run and register it, each unless MLflow has a model of that digest.

    MLflow's own ``log_model`` works on the process's active run and prints; this calls the client alone.

    Args:
        tracker: The run.
        folder: The files that ``save_model`` wrote.
        digest: The bundle's.
        step: The last epoch.
        registered: Name in the registry, None: not registered.
        alias: Name of the new version in the registry.
    """
    found: list[Any] = []

    def record(client: MlflowClient, run_id: str) -> None:
        found.append(_recorded(client, run_id, digest) or _record(client, run_id, folder, digest=digest, step=step))

    def register(client: MlflowClient, _: str) -> None:
        _register(client, found[0], str(registered), digest=digest, alias=alias)

    if tracker.attempt("the model", record) and registered is not None:
        tracker.attempt(f"the registered model {registered}", register)


def _recorded(client: MlflowClient, run_id: str, digest: str) -> Any:
    """Look up the run's model of a digest, None if there is none."""
    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else ():
        model = client.get_logged_model(output.model_id)
        if model.tags.get(DIGEST) == digest and model.status == "READY":
            return model
    return None


def _record(client: MlflowClient, run_id: str, folder: Path, *, digest: str, step: int) -> Any:
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name=NAME, source_run_id=run_id, tags={DIGEST: digest})
    described = Model.load(str(folder))
    described.run_id, described.model_id, described.model_uuid = run_id, model.model_id, model.model_id
    described.artifact_path = model.artifact_location
    described.save(str(folder / "MLmodel"))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
    client.log_model_artifacts(model.model_id, str(folder))
    return client.finalize_logged_model(model.model_id, "READY")


def _register(client: MlflowClient, model: Any, name: str, *, digest: str, alias: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}:
            raise
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{model.source_run_id}'")
    found = next((one for one in versions if one.tags.get(DIGEST) == digest), None)
    if found is None:
        found = _make_version(client, model, name, digest=digest)
    if alias.lower() != LATEST:
        client.set_registered_model_alias(name, alias, str(found.version))


def _make_version(client: MlflowClient, model: Any, name: str, *, digest: str) -> Any:
    # A server resolves models:/ itself; a store in this process would ask MLflow's global URI.
    is_server = str(client.tracking_uri).startswith(("http://", "https://"))
    source = f"models:/{model.model_id}" if is_server else model.artifact_location
    made = client.create_model_version(
        name, source, run_id=model.source_run_id, model_id=model.model_id, tags={DIGEST: digest}
    )
    if not is_server:  # a server links the two itself
        versions = json.dumps([{"name": name, "version": made.version}])
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: versions})
    return made
