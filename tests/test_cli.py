"""The command line: help, exit codes, and what is said about bad input before anything starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from distmil import cli
from distmil.command.ending import BAD_INPUT, DONE, FAILED
from distmil.config.by_job import keys_read
from distmil.config.root import Config
from distmil.defects import DEFECT
from distmil.errors import ConfigError, TrainingError
from distmil.pipeline import tile as tile_stage
from distmil.pipeline.job import Job
from distmil.storage.records import Record

ROOT = Path(__file__).parents[1]
NO_MANIFEST = "cohort.synthetic=1"
"""For jobs whose ``run`` is replaced: they have no input to check."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTMIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A good manifest of two small images of one patient each."""
    for name in ("a", "b"):
        Image.new("RGB", (40, 25), "pink").save(tmp_path / f"{name}.png")
    path = tmp_path / "manifest.csv"
    path.write_text("slide_id,slide_path,label,patient_id,split\na,a.png,0,p1,train\nb,b.png,positive,p2,val\n")
    return path


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tiling.patch=96"], "unknown key tiling.patch; did you mean patch_px or losses.patch?"),
        (["tiling.patch_px=big"], "tiling.patch_px = 'big': expected an integer >= 8 and <= 4096"),
        (["tiling.patch_px=2"], "tiling.patch_px = 2: expected an integer >= 8 and <= 4096"),
        (["losses.bag=-1"], "losses.bag = -1: expected a number >= 0 and <= 1000"),
        (
            ["training.run=../up"],
            "training.run = '../up': expected text of 1 to 128 letters, digits, . _ -, without a leading dot, or null",
        ),
        (["encoder.name=texture", "encoder.weights=DEFAULT"], "the texture encoder has no weights; leave it out"),
        (["storage.root=ftp://host/x"], "storage.root = 'ftp://host/x': expected an absolute folder, s3://"),
        ([], "cohort.manifest: set it to a CSV or Parquet file"),
        (["cohort.manifest=nowhere.csv"], "there is no manifest at"),
        (["patch_px=96"], "override 'patch_px=96': expected section.key=value; did you mean tiling.patch_px=96?"),
    ],
)
def test_bad_configurations_exit_2_and_say_why(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("tile", "", overrides) == BAD_INPUT
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,b.png,0,p9,train", "line 4: slide_id 'a' is a duplicate of line 2"),
        ("c,c.png,0,p9,train", "line 4: slide_path 'c.png': there is no such file"),
        ("c,b.png,tumour,p9,train", "line 4: label 'tumour': not a class; expected negative, positive or 0 to 1"),
        ("c,b.png,1,p1,val", "line 4: patient 'p1' is in val, but in train on line 2"),
        ("c/d,b.png,1,p9,val", "line 4: slide_id 'c/d': expected 1 to 128 letters, digits, . _ -"),
    ],
)
def test_bad_manifests_exit_2_and_name_the_line(
    manifest: Path, row: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest.write_text(manifest.read_text() + row + "\n")
    assert cli.main("tile", "", [f"cohort.manifest={manifest}"]) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_every_bad_row_is_named_at_once(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(manifest.read_text() + "c,c.png,0,p9,train\nd,d.png,9,p8,train\n")
    cli.main("tile", "", [f"cohort.manifest={manifest}"])
    said = capsys.readouterr().err
    assert "2 lines cannot be used" in said
    assert said.count("line 5") == 2


def test_a_done_job_ends_with_one_json_line(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    monkeypatch.setattr(tile_stage, "run", lambda job: {"patches": "somewhere", "mpp": job.config.tiling.mpp})
    assert cli.main("tile", "", ["tiling.mpp=1.0", NO_MANIFEST]) == DONE
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"job": "tile", "storage": str(home), "patches": "somewhere", "mpp": 1.0}
    assert captured.out.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("the loss is nan"), FAILED, "tile: the loss is nan"),
        (ConfigError("a key"), BAD_INPUT, "tile: a key"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
        (ZeroDivisionError("oh"), FAILED, "a defect in distmil"),
    ],
)
def test_failures_end_in_their_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_job: object) -> None:
        raise error

    monkeypatch.setattr(tile_stage, "run", fail)
    assert cli.main("tile", "", [NO_MANIFEST]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


DROPPED = Record("s9", {}, status="no_tissue", error="no tissue was found")
DEFECTIVE = Record(
    "s8", {}, status="failed", error="KeyError: 'x'", info={DEFECT: "KeyError: 'x' (survey.py:5 in look)"}
)
DOUBTED = Record("s7", {}, info={"doubts": ["pen ink on 3% of it"]})


def test_doubts_and_what_was_dropped_are_the_last_words_but_the_next_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: Job) -> dict[str, str]:
        job.outcomes.add({"s9": DROPPED, "s7": DOUBTED})
        job.console.note("epoch 100 of 100")
        return {}

    monkeypatch.setattr(tile_stage, "run", run)
    assert cli.main("tile", "", [NO_MANIFEST]) == DONE
    said = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert said[-9:] == [
        "epoch 100 of 100",
        "doubts about 1 of 2 slides:",
        "slides which doubt",
        "1 s7 pen ink on 3% of it",
        "1 of 2 slides were dropped:",
        "slides which why",
        "1 x no_tissue s9 no tissue was found",
        "next: train: python jobs/train.py cohort.synthetic=1",
        "or only embed: python jobs/embed.py cohort.synthetic=1",
    ]


def test_a_defect_on_a_slide_fails_a_job_that_went_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: Job) -> dict[str, str]:
        job.outcomes.add({"s9": DROPPED, "s8": DEFECTIVE})
        return {}

    monkeypatch.setattr(tile_stage, "run", run)
    assert cli.main("tile", "", ["tiling.max_bad_fraction=1", NO_MANIFEST]) == FAILED
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.splitlines()
    assert "defects in distmil, on 1 slide;" in said[-2]
    assert said[-1] == "  1 slide (s8): KeyError: 'x' (survey.py:5 in look)"


def test_what_was_dropped_is_said_where_a_job_fails_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(job: Job) -> None:
        job.outcomes.add({"s9": DROPPED})
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(tile_stage, "run", fail)
    assert cli.main("tile", "", [NO_MANIFEST]) == FAILED
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "tile: the loss is nan"
    assert "no tissue was found" in said[-2]


def test_a_root_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main("tile", "", [f"storage.root={tmp_path / 'file' / 'root'}"]) == FAILED
    assert f"cannot write {tmp_path / 'file' / 'root'}" in capsys.readouterr().err


def test_help_of_every_job_file_lists_the_keys_that_it_reads_without_loading_ray() -> None:
    code = (
        "import runpy, sys\n"
        "for job in sys.argv[1:]:\n"
        "    sys.argv[1:] = ['--help']\n"
        "    try:\n"
        "        runpy.run_path(f'jobs/{job}.py', run_name='__main__')\n"
        "    except SystemExit:\n"
        "        print('<END>')\n"
        "    assert 'ray' not in sys.modules and 'torch' not in sys.modules, job\n"
    )
    jobs = sorted(cli.STAGES)
    command = [sys.executable, "-c", code, *jobs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("<END>\n")[:-1]
    assert len(texts) == len(jobs)
    for job, text in zip(jobs, texts, strict=True):
        assert [key for key in Config().flat() if f"  {key}  (" in text] == keys_read(job)


BEFORE_HEAVY = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "ray", "mlflow", "sklearn", "matplotlib"}:
            raise ImportError(f"{name} is imported before the manifest is checked")

sys.meta_path.insert(0, Blocker())
from distmil import cli
sys.exit(cli.main(sys.argv[1], None, sys.argv[2:]))
"""


@pytest.mark.parametrize("job", cli.STAGES)
def test_a_wrong_manifest_is_refused_before_anything_heavy_is_imported(job: str, manifest: Path) -> None:
    (manifest.parent / "b.png").unlink()
    for name, said in (
        ("absent.csv", "there is no manifest at"),
        ("manifest.csv", "line 3: slide_path 'b.png': there"),
    ):
        given = [job, f"cohort.manifest={manifest.parent / name}", "prediction.model=nobody"]
        done = subprocess.run(
            [sys.executable, "-c", BEFORE_HEAVY, *given], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (BAD_INPUT, ""), done.stderr
        assert f"{job}: " in done.stderr
        assert said in done.stderr


def test_a_wrong_search_space_is_refused_before_anything_heavy_is_imported(manifest: Path) -> None:
    given = ["tune", f"cohort.manifest={manifest}", "search.space={bags.topk: [1, 2]}"]
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_HEAVY, *given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == BAD_INPUT
    assert "search.space.bags.topk: there is no such key" in done.stderr


@pytest.mark.parametrize("job", ["predict", "evaluate"])
def test_a_missing_bundle_is_asked_for_before_anything_heavy_is_imported(job: str, manifest: Path) -> None:
    given = [sys.executable, "-c", BEFORE_HEAVY, job, f"cohort.manifest={manifest}"]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT
    assert "prediction.model: set it to a bundle's folder" in done.stderr
    done = subprocess.run([*given, "prediction.model=frist"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT
    assert "prediction.model = 'frist': there is no such folder, nor a run of that name" in done.stderr


@pytest.mark.parametrize("job", cli.STAGES)
def test_the_configuration_is_printed_before_anything_heavy_is_imported_or_written(job: str, home: Path) -> None:
    given = [sys.executable, "-c", BEFORE_HEAVY, job, "--print-config", "training.epochs=7", "cohort.manifest=no.csv"]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.startswith(f"# {job}, storage root {home};")
    assert "  # default: 40\n  epochs: 7\n" in done.stdout
    assert done.stdout.count("# default:") == 2
    assert not home.exists()


def test_a_wrong_key_is_refused_when_the_configuration_is_to_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("tile", "", ["--print-config", "tiling.patch=96"]) == BAD_INPUT
    assert capsys.readouterr().out == ""


def test_a_root_in_a_checkout_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tile_stage, "run", lambda job: {})
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for ignored, noted in (("", True), ("out/\n", False)):
        (tmp_path / ".gitignore").write_text(ignored)
        assert cli.main("tile", "", [NO_MANIFEST, f"storage.root={tmp_path}/out"]) == DONE
        said = "note: the storage root is inside a git checkout that does not ignore it; add out/ to its .gitignore"
        assert (said in capsys.readouterr().err) == noted
