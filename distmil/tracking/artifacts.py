"""Files of a run that are recorded once."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distmil.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_once(tracker: Tracker, files: Mapping[str, bytes], *, folder: str, most: int) -> None:
    """Record files that a run does not have yet, so that it has at most some of their kind.

    Args:
        tracker: The run.
        files: Contents by name, the most important first.
        folder: In the run's artifacts.
        most: Number of files of this kind, which are those with the same text after the last underscore.
    """
    kinds = {name.rpartition("_")[2] for name in files}

    def send(client: "MlflowClient", run_id: str) -> None:
        there = {item.path.rpartition("/")[2] for item in client.list_artifacts(run_id, folder)}
        room = max(most - sum(name.rpartition("_")[2] in kinds for name in there), 0)
        with tempfile.TemporaryDirectory(prefix="distmil-") as scratch:
            for name in [name for name in files if name not in there][:room]:
                path = Path(scratch, name)
                path.write_bytes(files[name])
                client.log_artifact(run_id, str(path), folder)

    if files:
        tracker.attempt(folder, send)
