"""The doctor's single checks: libraries, machine, configuration, storage, MLflow, and the address of a cluster."""

import re
import socket
import sqlite3
import sys
import threading
import tomllib
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from distmil.pipeline.doctor import job, libraries, machine, record, services
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding

Usage = namedtuple("Usage", "total used free")


def fake_library(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


class TestLibraries:
    def test_without_the_native_library_of_openslide(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_library(tmp_path, "openslide", "raise OSError('libopenslide.so.1: cannot open shared object file')")
        monkeypatch.syspath_prepend(tmp_path)
        (found,) = job.OPENSLIDE.run()
        assert found.level == FAILED
        assert found.text == "cannot be imported: OSError: libopenslide.so.1: cannot open shared object file"
        assert "pip install openslide-bin" in found.advice

    def test_every_dependency_is_looked_at(self) -> None:
        project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = {re.split(r"[\[<>=]", text)[0] for text in project["dependencies"]}
        assert {*libraries.LARGE, *libraries.SMALL, "openslide-python", "openslide-bin"} == wanted

    def test_openslide_states_both_versions(self) -> None:
        (found,) = job.OPENSLIDE.run()
        assert found.level == OK
        assert found.text.startswith("library 4.")

    def test_broken_libraries_are_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_library(tmp_path, "shapely", "raise ImportError('broken build')")
        fake_library(tmp_path, "simplejpeg", "import sys; sys.exit(4)")
        monkeypatch.syspath_prepend(tmp_path)
        good, *broken = job.SMALL.run()
        assert good.level == OK
        assert "pydantic 2." in good.text
        assert [(found.level, found.name) for found in broken] == [(FAILED, "shapely"), (FAILED, "simplejpeg")]
        for found in broken:
            assert found.name not in good.text
            assert found.text.startswith("cannot be imported: ")
            assert f"pip install --force-reinstall {found.name}" in found.advice

    @pytest.mark.parametrize(("needed", "level"), [({}, OK), ({"optuna": FAILED}, FAILED), ({"boto3": FAILED}, OK)])
    def test_an_absent_extra_fails_only_who_needs_it(
        self, needed: dict[str, str], level: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        found = {finding.name: finding for finding in libraries.check_optional(needed)}
        assert set(found) == {f"optional {name}" for name in libraries.OPTIONAL}
        assert found["optional optuna"].level == level
        assert found["optional optuna"].advice == "pip install 'distmil[optuna]'"
        assert "search.algorithm=optuna" in found["optional optuna"].text


class TestMachine:
    def test_this_python_is_supported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert machine.check_machine()[0].level == OK
        monkeypatch.setattr(sys, "version_info", (3, 10, 2))
        assert machine.check_machine()[0].level == FAILED

    @pytest.mark.parametrize(
        ("free_gb", "total_gb", "level"), [(50, 100, OK), (5, 100, WARNING), (40, 1000, WARNING), (60, 1000, OK)]
    )
    def test_a_disk_that_is_nearly_full(
        self, free_gb: int, total_gb: int, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        usage = Usage(total_gb * 10**9, (total_gb - free_gb) * 10**9, free_gb * 10**9)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
        found = machine.check_disk("disk", str(tmp_path / "absent" / "below"), "free some space")
        assert found.level == level
        assert found.text.startswith(f"{free_gb}.0 GB free of {total_gb}.0 GB")
        assert bool(found.advice) == (level == WARNING)

    def test_the_disk_of_an_object_store_is_not_looked_at(self, tmp_path: Path) -> None:
        names = [finding.name for finding in machine.check_disks("s3://bucket/data")]
        assert [finding.name for finding in machine.check_disks(str(tmp_path))] == ["storage disk", *names]
        assert names[0] == "temporary files"

    def test_small_shared_memory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(64 * 10**6, 0, 64 * 10**6))
        (found,) = machine.check_shared_memory(str(tmp_path))
        assert found.level == WARNING
        assert "--shm-size" in found.advice

    def test_a_container_limits_the_memory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "memory.max").write_text("2000000000\n")
        monkeypatch.setattr(machine, "_CGROUP_MEMORY", (str(tmp_path / "absent"), str(tmp_path / "memory.max")))
        _, _, found = machine.check_machine()
        assert found.level == WARNING
        assert "2.0 GB of memory" in found.text


class TestSettings:
    def test_values_for_other_checks(self, tmp_path: Path) -> None:
        overrides = [f"storage.root={tmp_path}", "search.algorithm=optuna", "tracking.system_metrics=true"]
        settings = services.read_settings(None, overrides)
        assert settings["root"] == str(tmp_path)
        assert settings["needed"] == {"optuna": FAILED, "psutil": WARNING}

    def test_an_object_store_needs_its_library_for_artifacts(self) -> None:
        assert services.read_settings(None, ["storage.root=s3://b/d"])["needed"] == {"boto3": WARNING}
        assert services.read_settings(None, ["storage.root=s3://b/d", "tracking.uri=none"])["needed"] == {}

    def test_what_is_wrong_is_returned(self) -> None:
        assert services.read_settings(None, ["tiling.patch=3"])["error"].startswith("unknown key tiling.patch")
        assert "no such" in services.read_settings("/nowhere.yaml", [])["error"].lower()


class TestStore:
    def test_a_root_that_can_be_written_is_left_as_it_was(self, tmp_path: Path) -> None:
        (found,) = services.check_store(str(tmp_path), "private")
        assert found.level == OK
        assert list(tmp_path.iterdir()) == []

    def test_a_root_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (found,) = services.check_store(str(tmp_path / "file" / "root"), "private")
        assert found.level == FAILED
        assert found.text.startswith(f"cannot write {tmp_path / 'file' / 'root'}")
        assert "set storage.root" in found.advice


class _Answer(BaseHTTPRequestHandler):
    """A tracking server without experiments."""

    def do_POST(self) -> None:
        self._answer(b'{"experiments": []}')

    def do_GET(self) -> None:
        self._answer(b"{}")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


class TestRecord:
    def test_no_record(self, tmp_path: Path) -> None:
        (found,) = record.check_record("none", str(tmp_path))
        assert found.level == OK

    def test_a_database_is_not_made_and_is_read(self, tmp_path: Path) -> None:
        (found,) = record.check_record(None, str(tmp_path))
        assert (found.level, list(tmp_path.iterdir())) == (OK, [])
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("CREATE TABLE runs (run_uuid TEXT)")
            database.execute("INSERT INTO runs VALUES ('a')")
        database.close()
        (found,) = record.check_record(None, str(tmp_path))
        assert (found.level, found.text) == (OK, f"{tmp_path / 'mlflow.db'} has 1 runs")

    def test_a_file_that_is_not_a_database(self, tmp_path: Path) -> None:
        (tmp_path / "mlflow.db").write_text("not a database" * 100)
        (found,) = record.check_record(None, str(tmp_path))
        assert (found.level, "file is not a database" in found.text) == (FAILED, True)

    def test_a_server_that_answers(self, tmp_path: Path) -> None:
        server = HTTPServer(("127.0.0.1", 0), _Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            (found,) = record.check_record(f"http://127.0.0.1:{server.server_port}", str(tmp_path))
        finally:
            server.shutdown()
            server.server_close()
        assert found.level == OK, found

    def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        (found,) = record.check_record("http://127.0.0.1:9", str(tmp_path))
        assert found.level == WARNING
        assert "http://127.0.0.1:9 does not answer" in found.text
        assert "tracking.uri=none" in found.advice


class TestAddress:
    @pytest.mark.parametrize("address", ["", "auto", "local"])
    def test_an_address_that_is_no_host_is_left_to_ray(self, address: str) -> None:
        assert job.check_address(address) is None

    @pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "ray://127.0.0.1:{}?x=y"])
    def test_a_host_is_asked(self, form: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert job.check_address(form.format(port)) is None
        found = job.check_address(form.format(port))
        assert found is not None
        assert found.level == FAILED
        assert "Connection refused" in found.text
        assert "correct RAY_ADDRESS" in found.advice


def test_the_gpus_of_this_machine_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (found,) = libraries.check_gpus("auto", has_cluster=False)
    assert found.text.startswith(f"torch {torch.__version__} sees none")
    if Path("/proc/driver/nvidia/version").exists():
        assert (found.level, "NVIDIA driver" in found.text) == (WARNING, True)
    else:
        (found,) = libraries.check_gpus(True, has_cluster=False)
        assert found == Finding(FAILED, "GPUs", found.text, "set training.use_gpu=auto")
        assert libraries.check_gpus(True, has_cluster=True)[0].level == OK
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    (found,) = libraries.check_gpus(True, has_cluster=False)
    assert (found.level, found.text) == (OK, f"torch {torch.__version__} sees GPU 0, GPU 1")
