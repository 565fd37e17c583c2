"""The command itself: what it prints, when it asks, and how it ends."""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from distmil.__main__ import run
from distmil.errors import StorageError
from distmil.storage.files import Files
from distmil.storage.store import Store
from tests.support.random_store import RandomStore

ROOT = Path(__file__).parents[2]
NAME = "patches/0123456789ab"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with patches that nothing refers to."""
    home = tmp_path / "home"
    monkeypatch.setenv("DISTMIL_HOME", str(home))
    RandomStore(Store(str(home)), random.Random(0)).commit(NAME, "s1", {})
    for path in home.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return home


class Terminal(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_list_ends_with_one_json_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "tiling.patch_px=96"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"storage: {home}\n")
    assert "nothing refers to 1 item: " in captured.err
    assert captured.err.endswith("To remove: distmil store tiling.patch_px=96 --remove unused\n")
    answer = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert (answer["job"], answer["storage"]) == ("store", str(home))
    (item,) = answer["items"]
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    assert item | {"files": 0} == {
        "name": NAME, "what": "patches, settings not recorded", "slides": 1, "files": 0, "size_bytes": size,
        "written": "2001-09-09T01:46:40+00:00", "used_by": [], "is_unused": True, "is_busy": False, "is_half": False,
    }  # fmt: skip
    assert answer["total_bytes"] == answer["unused_bytes"] == size


@pytest.mark.parametrize(("said", "is_gone"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False)])
def test_a_terminal_is_asked(
    said: str, is_gone: bool, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(said))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(["store", "--remove", NAME, "unused"]) == 0
    captured = capsys.readouterr()
    assert "remove? [y/N] " in captured.err
    assert json.loads(captured.out)["removed"] == [NAME] * is_gone
    assert (home / NAME).exists() is not is_gone


def test_without_a_terminal_it_needs_yes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "--remove", "unused"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("store: nothing was removed: add --yes, for there is no terminal to ask on\n")
    assert (home / NAME / "s1/commit.json").exists()
    assert run(["store", "--yes", "--remove", f"{home}/{NAME}/", "tiling.mpp=1"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [NAME]
    assert run(["store", "--yes", "--remove", "unused"]) == 0
    assert "nothing can go: " in capsys.readouterr().err


def test_a_store_that_cannot_be_written_is_listed_and_left(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_self: Files, name: str, _data: bytes, **_more: object) -> None:
        raise StorageError(f"cannot write {name}: Read-only file system.")

    monkeypatch.setattr(Files, "write", refuse)
    assert run(["store"]) == 0
    assert run(["store", "--yes", "--remove", "unused"]) == 1
    assert "store: nothing was removed, because this store cannot be written: cannot" in capsys.readouterr().err
    assert (home / NAME / "s1/commit.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["storage.root=/nowhere/at/all"], "there is no folder /nowhere/at/all; the first job makes it, or correct"),
        (["--remove", "tiling.mpp=1"], "--remove needs a name of the list, or unused"),
        (["tiling.patch=3"], "unknown key tiling.patch"),
    ],
)
def test_bad_input_ends_in_2(arguments: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_it_loads_neither_ray_nor_torch(home: Path) -> None:
    code = "import sys; from distmil.__main__ import run; assert run(['store']) == 0\n"
    code += "heavy = {'ray', 'torch', 'mlflow', 'sklearn', 'openslide'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_job_file_proposes_its_own_command(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/store.py"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "DISTMIL_HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("To remove: python jobs/store.py --remove unused\n")
