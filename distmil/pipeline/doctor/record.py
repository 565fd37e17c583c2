"""The check of MLflow's tracking server or database."""

import os
import sqlite3
from pathlib import Path

from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding, reason
from distmil.tracking.mlflow_client import connect
from distmil.tracking.server import resolve_uri

_SQLITE = "sqlite:///"
_ADVICE = (
    "jobs run without it and send their record when it answers again; start the server, correct tracking.uri, or set "
    "tracking.uri=none"
)


def check_record(uri: str | None, root: str) -> list[Finding]:
    """Ask MLflow for an experiment; an SQLite database is only read.

    Args:
        uri: ``tracking.uri``.
        root: The storage root.
    """
    resolved = resolve_uri(uri, root)
    if resolved is None:
        return [Finding(OK, "MLflow", "tracking.uri = none: no record is kept")]
    if resolved.startswith(_SQLITE):
        return [_check_database(Path(resolved.removeprefix(_SQLITE)))]
    try:
        connect(resolved).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 (MLflow's stores raise all kinds)
        return [Finding(WARNING, "MLflow", f"{resolved} does not answer: {reason(error)}", _ADVICE)]
    return [Finding(OK, "MLflow", f"{resolved} answers")]


def _check_database(file: Path) -> Finding:
    folder = next(parent for parent in file.parents if parent.exists())
    if not os.access(file if file.exists() else folder, os.W_OK):
        return Finding(WARNING, "MLflow", f"{file} cannot be written", "set tracking.uri to another place, or to none")
    if not file.exists():
        return Finding(OK, "MLflow", f"{file} will be made by the first job")
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5) as database:
            runs = database.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.Error as error:
        advice = "move the file away, or set tracking.uri to another"
        return Finding(FAILED, "MLflow", f"{file} cannot be read: {reason(error)}", advice)
    return Finding(OK, "MLflow", f"{file} has {runs} runs")
