"""Every job with its root on an S3 server that fails, stalls and cuts off: the output is the one made on disk."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.objectstore import JOBS, RUN, Stages, differences, settings_of
from distmil import cli
from distmil.demo import make_cohort
from distmil.storage import Store
from tests.integration.jobrunning import run_job
from tests.s3server import BUCKET, FAULTS, S3, s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHARE = 0.03
EPOCHS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    home = tmp_path_factory.mktemp("s3")
    with s3_server(home / "log") as s3, settings_of(s3, home):
        s3.behaviour.slow_s = 0.5
        yield s3


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    """The server, misbehaving."""
    server.behaviour.done.clear()
    server.behaviour.share = SHARE
    yield server
    server.behaviour.share = 0.0


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"), num_slides=6)


def stages(root: str, manifest: Path, home: Path) -> Stages:
    home.mkdir(exist_ok=True)
    return Stages(root, manifest, home, EPOCHS)


@pytest.fixture(scope="module")
def on_disk(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """What every job makes on disk."""
    home = tmp_path_factory.mktemp("disk")
    return stages(str(home / "store"), manifest, home).run_all()


@pytest.fixture(scope="module")
def on_s3(server: S3, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """What every job makes on the server, through faults of every kind."""
    server.behaviour.share = SHARE
    made = stages(f"s3://{BUCKET}/all", manifest, tmp_path_factory.mktemp("all")).run_all()
    server.behaviour.share = 0.0
    return made


def test_every_file_is_the_one_made_on_disk(server: S3, on_s3: Stages, on_disk: Stages) -> None:
    assert all(server.behaviour.done[kind] > 0 for kind in FAULTS), server.behaviour.done
    expected = on_disk.files()
    assert differences(expected, on_s3.files()) == []
    for name in (
        f"models/{RUN}/model.safetensors",
        f"checkpoints/{RUN}/latest.json",
        "predictions/predicted/slides.parquet",
    ):
        assert name in expected
    for ending, folder in ((".parquet", "patches"), (".arrow", "embeddings"), (".png", "predictions/predicted/maps")):
        assert [name for name in expected if name.startswith(folder) and name.endswith(ending)]


def test_every_job_says_what_it_says_on_disk(on_s3: Stages, on_disk: Stages) -> None:
    assert on_s3.answers.keys() == on_disk.answers.keys() == JOBS.keys()
    for job, answer in on_disk.answers.items():
        found = on_s3.answers[job]
        assert found["storage"].startswith(f"s3://{BUCKET}/all?endpoint_override=http://")
        assert found.keys() == answer.keys()
        for key, value in answer.items():
            if not isinstance(value, str):
                assert found[key] == value, f"{job}: {key}"
            elif value.startswith(on_disk.root):  # a path: of the same file, and complete by itself
                assert (
                    found[key].partition("?")[0].removeprefix(f"s3://{BUCKET}/all") == value.removeprefix(on_disk.root)
                    or key == "report"
                )
    page = on_s3.answers["tile"]["report"]
    folder, _, name = page.partition("?")[0].rpartition("/")
    assert b"<html" in Store(f"{folder}?{page.partition('?')[2]}").read(name)[:500]


def test_a_bundle_is_taken_by_its_uri(s3: S3, on_s3: Stages, manifest: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run_job(
        home, "predict", f"cohort.manifest={manifest}", "cohort.val_fraction=0.4", "prediction.split=val",
        f"storage.root={on_s3.root}", f"prediction.model=s3://{BUCKET}/all/models/{RUN}", "prediction.run=by-uri",
    )  # fmt: skip
    assert done.code == 0, done.err
    slides = "slides.parquet"
    assert on_s3.store.read(f"predictions/by-uri/{slides}") == on_s3.store.read(f"predictions/evaluated/{slides}")


@pytest.mark.parametrize("job", ["tile", "train"])
def test_kill_9_then_the_same_command_ends_as_on_disk(
    s3: S3, on_disk: Stages, manifest: Path, tmp_path: Path, job: str
) -> None:
    broken = stages(f"s3://{BUCKET}/killed-{job}", manifest, tmp_path / "home")
    watched = broken.store

    def is_time() -> bool:
        if job == "train":
            return watched.exists(f"checkpoints/{RUN}/latest.json")
        return sum(name.endswith("/commit.json") for name in broken.files(["patches"])) >= 2

    broken.kill(job, is_time)
    if job == "train":
        history = json.loads(watched.read(f"checkpoints/{RUN}/latest.json"))["record"]["info"]["history"]["rows"]
        assert 0 < len(history) < EPOCHS
    done = broken.run(job)
    if job == "train":
        assert f"run {RUN} goes on after epoch" in done.err
    made = broken.files()
    expected = {name: digest for name, digest in on_disk.files().items() if name.startswith(folders(job))}
    assert differences(expected, {name: digest for name, digest in made.items() if name.startswith(folders(job))}) == []
    assert s3.behaviour.num_faults > 0


def folders(job: str) -> tuple[str, ...]:
    """Return what a job makes that nothing else does."""
    return ("patches",) if job == "tile" else ("patches", "embeddings", "labels", "models", f"predictions/{RUN}/")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("s3://nowhere/runs", "there is no bucket 'nowhere' on http://127.0.0.1:"),
        ("s3://denied/runs", "denies access to bucket 'denied'"),
        ("s3://bucket/runs?endpoint_override=http://127.0.0.1:9", "http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_store_that_cannot_be_used_ends_the_job_at_once(
    server: S3, manifest: Path, capsys: pytest.CaptureFixture[str], root: str, said: str
) -> None:
    assert cli.main("tile", "", [f"cohort.manifest={manifest}", f"storage.root={root}"]) == cli.FAILED
    captured = capsys.readouterr()
    assert said in captured.err
    assert root.partition("?")[0] in captured.err
    assert captured.out == ""


def test_keys_in_a_uri_are_refused_without_being_shown(server: S3, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("tile", "", ["storage.root=s3://key:hunter2@bucket/runs"]) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert "credentials do not belong into a URI" in captured.err
    assert "hunter2" not in captured.err
    assert "AWS_ENDPOINT_URL" in os.environ
