"""``distmil doctor`` as a user runs it: fine, without write access, with a broken library, on a cluster, and Ctrl-C."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distmil.pipeline.doctor import job
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Check, Finding
from distmil.processes.tree import descendants

ROOT = Path(__file__).parents[3]
PR_CAPBSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2
LIMIT_S = 400

pytestmark = [pytest.mark.slow]


def environment(home: Path, *paths: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    return {**kept, "DISTMIL_HOME": str(home), "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def doctor(*arguments: str, **more: Any) -> tuple[int, dict[str, dict[str, str]], str]:
    """Run the doctor; return its exit code, its findings by name, and its words."""
    done = subprocess.run(
        [sys.executable, "-m", "distmil", "doctor", *arguments],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, **more,
    )  # fmt: skip
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["job"] == "doctor"
    assert sum(answer[level] for level in ("ok", "warning", "FAILED")) == len(answer["checks"])
    lines = done.stderr.splitlines()
    assert len(lines) == len(answer["checks"]) + 2
    assert lines[-1].startswith("next: ")
    assert lines[-2] == f"doctor: {answer['ok']} ok, {answer['warning']} warning, {answer['FAILED']} FAILED"
    return done.returncode, {check["name"]: check for check in answer["checks"]}, done.stderr


def failed(found: dict[str, dict[str, str]]) -> list[str]:
    return [name for name, check in found.items() if check["level"] == FAILED]


@pytest.mark.ray
def test_all_is_fine(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code, found, words = doctor("--ray", cwd=tmp_path, env=environment(home))
    assert (code, failed(found)) == (0, []), words
    for name in ("Python", "distmil", "torch", "ray", "openslide", "storage", "MLflow", "GPUs", "configuration"):
        assert found[name]["level"] == OK
    (node,) = [check for name, check in found.items() if name.startswith("node ")]
    assert node["text"].endswith("equal versions; can use the storage")
    assert list(home.iterdir()) == []


def heed_permissions() -> None:
    """Take from a process of root, once it starts its program, the right to write where permissions forbid it."""
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_without_openslide_without_write_access_and_without_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "openslide").mkdir()
    (tmp_path / "openslide" / "__init__.py").write_text("raise ImportError('openslide is blocked')")
    for name in ("torchvision", "timm"):  # they take seconds to import, and are fine in test_all_is_fine
        (tmp_path / f"{name}.py").touch()
    root = tmp_path / "root"
    root.mkdir(mode=0o555)
    values = environment(root, tmp_path) | {"RAY_ADDRESS": "127.0.0.1:9"}
    code, found, words = doctor(cwd=tmp_path, env=values, preexec_fn=heed_permissions)
    assert (code, failed(found)) == (1, ["openslide", "storage", "cluster"]), words
    assert "openslide is blocked" in found["openslide"]["text"]
    assert "pip install openslide-bin" in found["openslide"]["advice"]
    assert found["storage"]["text"].startswith(f"cannot write {root}")
    assert "Permission denied" in found["storage"]["text"]
    assert "set storage.root" in found["storage"]["advice"]
    assert found["MLflow"]["level"] == WARNING
    assert found["cluster"]["text"] == "RAY_ADDRESS = '127.0.0.1:9': Connection refused"


def test_with_a_wrong_key_there_is_no_storage_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Check, "run", lambda check, **_: [Finding(OK, check.name, "not run here")])
    monkeypatch.setattr(job, "end_descendants", lambda **_: None)  # this process has others
    monkeypatch.setenv("DISTMIL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert job.main("", ["tiling.patch=3"]) == 1
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    found = {check["name"]: check for check in checks}
    assert failed(found) == ["configuration"]
    assert found["configuration"]["text"] == "unknown key tiling.patch; did you mean patch_px or losses.patch?"
    assert not {"storage", "MLflow"} & set(found)
    assert "RAY_ADDRESS is not set" in found["cluster"]["text"]
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_doctor_and_its_checks(tmp_path: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "distmil", "doctor"],
        cwd=tmp_path, env=environment(tmp_path / "home"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (background jobs ignore it)
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(started := descendants([process.pid])) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, words = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), words
    assert "doctor: interrupted" in words
    assert "Traceback" not in words
    assert [child for child in started if child.is_alive] == []


@pytest.mark.parametrize(
    ("config", "overrides", "num_failed", "step"),
    [
        (None, ["storage.root=/a b"], 0, "tile: distmil tile cohort.manifest=SLIDES.csv 'storage.root=/a b'"),
        (None, ["cohort.manifest=x.csv"], 0, "tile: distmil tile cohort.manifest=x.csv"),
        ("c.yaml", ["tiling.mpp=1"], 0, "tile: distmil tile --config c.yaml tiling.mpp=1"),
        ("c.yaml", [], 2, "mend what FAILED, and run the doctor again"),
    ],
)
def test_the_doctor_says_what_is_next(config: str | None, overrides: list[str], num_failed: int, step: str) -> None:
    assert job.next_step(config, overrides, num_failed=num_failed) == step
