"""The training run of a bundle in MLflow."""

from typing import TYPE_CHECKING

from distmil.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOB = "distmil.job"
DIGEST = "distmil.bundle_digest"
"""Tag of runs and models: the digest of the bundle that they saved or used."""
PARENT = "mlflow.parentRunId"


def link_training(tracker: Tracker, digest: str) -> None:
    """Put a run under the training run of the same experiment that saved a bundle, if there is one.

    Args:
        tracker: The run, such as an evaluation's.
        digest: The bundle's.
    """

    def link(client: "MlflowClient", run_id: str) -> None:
        experiment = client.get_run(run_id).info.experiment_id
        runs = client.search_runs([experiment], f"tags.`{DIGEST}` = '{digest}'")  # the newest first
        trained = [run for run in runs if run.data.tags.get(JOB, "train") == "train"]
        if trained:
            client.set_tag(run_id, PARENT, trained[0].info.run_id)

    tracker.attempt("the link to its training", link)
