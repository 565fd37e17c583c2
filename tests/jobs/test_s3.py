"""Every job with its root on an S3 server that fails, stalls and cuts off: the output is the one made on disk."""

import importlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distmil import cli
from distmil.cli import STAGES
from distmil.command.ending import BAD_INPUT, FAILED
from distmil.config.loading import load_config
from distmil.pipeline import cluster
from distmil.pipeline.job import Job
from distmil.storage.store import Store
from tests.campaigns.object_store import JOBS, RUN, Stages, differences, settings_of
from tests.support.s3_server import BUCKET, FAULTS, S3, s3_server
from tests.support.scale import IS_FULL
from tests.support.trained import RUN as HOUSE_RUN
from tests.support.trained import make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.timeout(1800),  # a fixture is every job, twice: minutes even on a quiet machine
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

SHARE = 0.03 if IS_FULL else 0.08
EPOCHS = 10 if IS_FULL else 2  # so many that a job is never through before it is killed
SLIDES = 6 if IS_FULL else 4
PREDICTED = "predicted" if IS_FULL else RUN
KILLED = ("tile", "train") if IS_FULL else ()
STAGES_HERE = tuple(JOBS) if IS_FULL else ("train", "tile")
"""A training goes through every other job's work, but for the report of the tile job."""
in_full = pytest.mark.skipif(not IS_FULL, reason="every job, two of them killed: make test-all")
UNTIDIED = re.compile(r"patches/.*/(plan|part-\d+)\.json")
"""What a kill between a slide's commit and its tidying leaves: no record names it, nobody reads it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    home = tmp_path_factory.mktemp("s3")
    with s3_server(home / "log") as s3, settings_of(s3, home):
        s3.behaviour.slow_s = 0.5
        yield s3


def run_here(made: Stages, job: str) -> None:
    """Run a job in this process."""
    started = time.monotonic()
    config = load_config(None, made.arguments(job))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "MAX_ACTORS", 2 if IS_FULL else 1)
        answer = importlib.import_module(STAGES[job]).run(Job(config, made.store))
    made.answers[job] = json.loads(json.dumps({"job": job, "storage": made.store.root, **answer}))
    made.seconds[job] = time.monotonic() - started


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose slides are tiled, embedded and labelled in this process."""
    home = Path(make_house(tmp_path_factory.mktemp("disk") / "store", num_slides=SLIDES).store.root)
    shutil.rmtree(home / "checkpoints" / HOUSE_RUN)
    return home


@pytest.fixture(scope="module")
def manifest(house: Path) -> Path:
    return house / "synthetic" / str(SLIDES) / "manifest.csv"


@pytest.fixture(scope="module")
def on_disk(server: S3, house: Path, manifest: Path, local_ray: None) -> Stages:
    """What every job makes on disk."""
    made = Stages(str(house), manifest, house.parent, EPOCHS)
    for job in STAGES_HERE:
        run_here(made, job)
    return made


@dataclass
class Killed:
    """What was there when jobs were killed, and what the same commands said then."""

    tiled: int = 0
    epochs: int = 0
    said: str = ""


@pytest.fixture(scope="module")
def killed() -> Killed:
    return Killed()


@pytest.fixture(scope="module")
def on_s3(
    server: S3, manifest: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None, killed: Killed
) -> Stages:
    """What every job makes on the server, through faults of every kind; two are killed on the way and run again."""
    server.behaviour.share = SHARE
    made = Stages(f"s3://{BUCKET}/all", manifest, tmp_path_factory.mktemp("all"), EPOCHS)
    watched = made.store

    def commits() -> int:
        return sum(name.endswith("/commit.json") for name in made.names(["patches"]))

    def has_begun(job: str) -> bool:
        return commits() >= 2 if job == "tile" else watched.exists(f"checkpoints/{RUN}/latest.json")

    for job in STAGES_HERE:
        if job not in KILLED:
            run_here(made, job)
            continue
        made.kill(job, lambda job=job: has_begun(job))
        if job == "tile":
            killed.tiled = commits()
        else:
            latest = json.loads(watched.read(f"checkpoints/{RUN}/latest.json"))
            killed.epochs = len(latest["record"]["info"]["history"]["rows"])
        killed.said += made.run(job).err
    server.behaviour.share = 0.0
    return made


def test_every_file_is_the_one_made_on_disk(server: S3, on_s3: Stages, on_disk: Stages) -> None:
    assert all(server.behaviour.done[kind] > 0 for kind in FAULTS), server.behaviour.done
    expected = on_disk.files()
    found = {name: digest for name, digest in on_s3.files().items() if not UNTIDIED.fullmatch(name)}
    assert differences(expected, found) == []
    for name in (
        f"models/{RUN}/model.safetensors",
        f"checkpoints/{RUN}/latest.json",
        f"predictions/{PREDICTED}/slides.parquet",
    ):
        assert name in expected
    maps = f"predictions/{PREDICTED}/maps"
    for ending, folder in ((".parquet", "patches"), (".arrow", "embeddings"), (".png", maps)):
        assert [name for name in expected if name.startswith(folder) and name.endswith(ending)]


@in_full
def test_what_was_killed_went_on_where_it_stopped(on_s3: Stages, killed: Killed) -> None:
    assert 2 <= killed.tiled < SLIDES
    assert f"tiling {SLIDES - killed.tiled} slides ({killed.tiled} are done)" in killed.said
    assert 0 < killed.epochs < EPOCHS
    assert f"run {RUN} goes on after epoch" in killed.said


@in_full
def test_a_search_comes_to_the_same(on_s3: Stages, on_disk: Stages) -> None:
    found, answer = on_disk.searched(), on_disk.answers["tune"]
    assert on_s3.searched() == found
    settings = [answer[name]["values"] for name in ("winner", "default")]
    assert len(found["trials"]) == 3 + 2 * (1 if settings[0] == settings[1] else 2)
    best = load_config(on_s3.answers["tune"]["best_config"])
    assert best.cohort.manifest is None  # nor any other path
    assert best.storage.root is None
    assert best.losses.bag == settings[0]["losses.bag"]


def test_every_job_says_what_it_says_on_disk(on_s3: Stages, on_disk: Stages) -> None:
    assert on_s3.answers.keys() == on_disk.answers.keys() == set(STAGES_HERE)
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
    assert cli.main("tile", "", [f"cohort.manifest={manifest}", f"storage.root={root}"]) == FAILED
    captured = capsys.readouterr()
    assert said in captured.err
    assert root.partition("?")[0] in captured.err
    assert captured.out == ""


def test_keys_in_a_uri_are_refused_without_being_shown(server: S3, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("tile", "", ["storage.root=s3://key:hunter2@bucket/runs"]) == BAD_INPUT
    captured = capsys.readouterr()
    assert "credentials do not belong into a URI" in captured.err
    assert "hunter2" not in captured.err
    assert "AWS_ENDPOINT_URL" in os.environ
