"""The command ``distmil``: its help, its jobs, and what it says of a wrong job."""

import platform
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import distmil
from distmil import cli
from distmil.__main__ import BAD_INPUT, JOBS, run
from distmil.config.by_job import EXAMPLES, USUAL, keys_read
from distmil.config.root import Config

ROOT = Path(__file__).parents[1]
ORDER = [
    "tile", "embed", "import_features", "pretrain", "train", "tune", "evaluate", "predict", "export", "view",
    "export_features", "compare", "store",
    "encoders", "doctor", "completion",
]  # fmt: skip


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distmil", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_job_file_is_a_job_of_the_command() -> None:
    assert {*JOBS, "compare", "store"} == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert set(JOBS) == set(cli.STAGES)


def test_the_help_lists_the_jobs_in_the_order_of_work() -> None:
    done = command("--help")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2].isalpha()]
    assert [name for name in names if name in ORDER] == ORDER
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_help_is_there_at_once() -> None:
    code = "import sys; from distmil.__main__ import run\ntry: run(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'ray', 'torch', 'mlflow', 'pyarrow', 'pydantic', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_help_takes_little_time() -> None:
    run_s = []
    for _ in range(5):
        started = time.perf_counter()
        command("--help")
        run_s.append(time.perf_counter() - started)
    assert min(run_s) < 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "distmil: there is no job 'trian'; did you mean train?\n"),
        (["evalute", "--help"], "distmil: there is no job 'evalute'; did you mean evaluate?\n"),
        (["docter"], "distmil: there is no job 'docter'; did you mean doctor?\n"),
        (["xyz"], f"distmil: there is no job 'xyz'; jobs are {', '.join(ORDER)}\n"),
        (["bags.n=3"], f"distmil: there is no job 'bags.n=3'; jobs are {', '.join(ORDER)}\n"),
    ],
)
def test_a_wrong_job_is_answered_in_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == BAD_INPUT
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("arguments", [[], ["--nonsense"]])
def test_without_a_job_the_usage_is_shown(arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr.startswith("usage: distmil JOB [--config FILE.yaml] [section.key=value ...]")


def test_the_console_script_is_this_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"distmil": f"{run.__module__}:{run.__name__}"}


def test_the_version() -> None:
    lines = command("--version").stdout.splitlines()
    assert lines[0] == f"distmil {distmil.__version__}"
    assert lines[1] == f"python {platform.python_version()}"
    assert [line.split()[0] for line in lines[2:]] == ["torch", "ray", "mlflow"]


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--version"]])
def test_the_version_is_there_without_anything_heavy(arguments: list[str]) -> None:
    code = f"import sys; from distmil.__main__ import run\ntry: run({arguments})\nexcept SystemExit: pass\n"
    code += "assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == command("--version").stdout


@pytest.mark.parametrize("job", JOBS)
def test_the_help_of_a_job_has_an_example_the_usual_keys_and_those_it_reads(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run([job, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: distmil {job} [--config FILE.yaml]")
    assert JOBS[job] in text
    assert f"\n  distmil {job} {EXAMPLES[job]}\n" in text
    assert [key for key in USUAL[job] if f"\n  {key}=" in text.partition("options:")[0]] == list(USUAL[job])
    assert [key for key in Config().flat() if f"  {key}  (" in text] == keys_read(job)
    assert max(len(line) for line in text.splitlines() if not line.startswith("  ") or "; default " not in line) < 80


def test_the_help_of_all_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["tile", "--help-all"])
    text = capsys.readouterr().out
    assert all(f"  {key}  (" in text for key in Config().flat())


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_the_one_of_its_file(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cli, "main", lambda *given, **more: calls.append((given, more)) or 7)
    assert run([job, "--config", "x.yaml", "bags.n=3"]) == 7
    assert calls == [((job, JOBS[job], ["--config", "x.yaml", "bags.n=3"]), {"program": f"distmil {job}"})]


def test_bad_input_ends_in_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tiling.patch=96"]) == BAD_INPUT
    assert capsys.readouterr().err == "train: unknown key tiling.patch; did you mean patch_px or losses.patch?\n"
