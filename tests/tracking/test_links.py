"""Where a run can be seen: the command is one that a shell takes, and the page is that of MLflow's training view."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distmil.tracking import links
from distmil.tracking.links import record_lines, run_page, ui_command
from distmil.tracking.tracker import Tracker

PAGE = "#/experiments/7/runs/abc?workflowType=machine_learning"


def tracker_of(uri, *, run_id="abc"):
    tracker = Tracker(uri, "an experiment", run_id)
    tracker.experiment_id = "7"
    return tracker


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """No MLflow is on the PATH, and no S3 server is named."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)


def test_a_local_record_has_a_command_and_a_page():
    first, second = record_lines(tracker_of("sqlite:////data/a store/mlflow.db"))
    words = shlex.split(first.removeprefix("record: "))
    assert words[-3:] == ["ui", "--backend-store-uri", "sqlite:////data/a store/mlflow.db"]
    assert second == f"  then open http://127.0.0.1:5000/{PAGE}"


@pytest.mark.parametrize("has_script", [True, False])
def test_a_shell_in_another_folder_finds_the_program(tmp_path, monkeypatch, has_script):
    folder = tmp_path / "an env"
    folder.mkdir()
    (folder / "python").write_text('#!/bin/sh\necho python "$@"\n')
    (folder / "mlflow").write_text('#!/bin/sh\necho script "$@"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    if not has_script:
        (folder / "mlflow").unlink()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    command = ["sh", "-c", ui_command("sqlite:///x y.db")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    begins = "script" if has_script else "python -m mlflow"
    assert done.stdout == f"{begins} ui --backend-store-uri sqlite:///x y.db\n"


def test_this_python_has_the_program_and_it_takes_the_options():
    words = shlex.split(ui_command("sqlite:///x.db"))
    done = subprocess.run([*words[:-2], "--help"], cwd="/", capture_output=True, text=True, timeout=120, check=True)
    assert "--backend-store-uri" in done.stdout


def test_the_short_name_is_taken_only_where_it_is_the_same_program(tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "mlflow").write_text("#!/bin/sh\n")
        (folder / "mlflow").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{other}")
    assert ui_command("sqlite:///x.db") == "mlflow ui --backend-store-uri sqlite:///x.db"
    monkeypatch.setenv("PATH", f"{other}{os.pathsep}{own}")
    assert ui_command("sqlite:///x.db") == f"{own}/mlflow ui --backend-store-uri sqlite:///x.db"


def test_a_server_has_its_page_alone_without_a_password():
    assert record_lines(tracker_of("https://jane:secret@host:8/mlflow/")) == [f"record: https://host:8/mlflow/{PAGE}"]
    assert run_page("http://host", "7", "abc") == f"http://host/{PAGE}"


def test_a_database_elsewhere_is_named_without_a_password():
    assert record_lines(tracker_of("postgresql://jane:secret@host/db")) == ["record: run abc of postgresql://host/db"]


def test_artifacts_on_a_server_are_found_by_the_command(monkeypatch):
    monkeypatch.setenv(links.S3_VARIABLE, "http://host:9000")
    assert ui_command("sqlite:///x.db").startswith("MLFLOW_S3_ENDPOINT_URL=http://host:9000 ")


@pytest.mark.parametrize(
    "tracker", [Tracker(None, "x"), Tracker("http://host", "x"), tracker_of("sqlite:///x", run_id=None)]
)
def test_without_a_run_there_is_nothing_to_open(tracker):
    assert record_lines(tracker) == []


def test_the_program_is_this_pythons():
    assert Path(shlex.split(ui_command("sqlite:///x.db"))[0]).parent == Path(sys.executable).parent
