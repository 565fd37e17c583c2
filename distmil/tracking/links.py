"""Where a run can be seen: the page of MLflow's model training view, and the command that serves it."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from distmil.tracking.server import S3_VARIABLE
from distmil.tracking.tracker import Tracker

LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves."""


def record_lines(tracker: Tracker) -> list[str]:
    """Word where a run can be seen, for the end of a job; nothing where MLflow has no run."""
    if tracker.run_id is None or tracker.experiment_id is None:
        return []
    uri = str(tracker.uri)
    if uri.startswith("sqlite:"):
        page = run_page(LOCAL_PAGE, tracker.experiment_id, tracker.run_id)
        return [f"record: {ui_command(uri)}", f"  then open {page}"]
    if uri.startswith(("http://", "https://")):
        return [f"record: {run_page(uri, tracker.experiment_id, tracker.run_id)}"]
    return [f"record: run {tracker.run_id} of {without_password(uri)}"]


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Name the page of a run; without the last part MLflow 3 opens it among traces and evaluations of agents."""
    place = without_password(server).rstrip("/")
    return f"{place}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def ui_command(uri: str) -> str:
    """Word the command that serves a database, as a shell takes it in any folder."""
    endpoint = os.environ.get(S3_VARIABLE)
    before = f"{S3_VARIABLE}={shlex.quote(endpoint)} " if endpoint else ""
    return f"{before}{_program()} ui --backend-store-uri {shlex.quote(uri)}"


def without_password(uri: str) -> str:
    """Leave the user and password out of a URI."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _program() -> str:
    """Word MLflow's program as it is called here: this Python's own, for another one may be of another version."""
    script = Path(sys.executable).parent / "mlflow"
    if not os.access(script, os.X_OK):
        return f"{shlex.quote(sys.executable)} -m mlflow"
    found = shutil.which("mlflow")
    return "mlflow" if found is not None and Path(found).samefile(script) else shlex.quote(str(script))
