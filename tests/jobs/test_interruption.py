"""Ctrl-C and SIGTERM in every job: its sentence, its exit code, nothing left running, and the same command goes on."""

import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

import distmil
from distmil.processes.tree import Process, descendants
from tests.support.jobs import ROOT, TIMEOUT_S, command, environment, run_here, run_job
from tests.support.scale import IS_FULL
from tests.support.trained import RUN, make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

EPOCHS = 40 if IS_FULL else 16
"""So many that a training is interrupted before it is through."""
SMALL = ("cohort.synthetic=8", "cohort.val_fraction=0.4", "model.feature_dim=32", "prediction.maps=false")
NET = ("cohort.synthetic=8", "cohort.val_fraction=0.4", "prediction.model=net")
JOBS = {
    "tile": (("cohort.synthetic=8",), "tiling 8 slides"),
    "embed": (("cohort.synthetic=8",), "embedding 8 slides"),
    "train": (
        (*SMALL, "training.run=again", f"training.epochs={EPOCHS}", "prediction.split=test"),
        f"epoch 1/{EPOCHS}",
    ),
    "tune": ((*SMALL, "search.run=found", "search.trials=6", "search.repeats=0", "training.epochs=6"), "trial 1/6"),
    "evaluate": (NET, "predicting"),
    "predict": ((*NET, "prediction.map_px=512"), "predicting"),
}
GONE_WITHIN_S = 5.0
AGENTS_GONE_WITHIN_S = 60.0
"""Of a job that died without a handler: Ray's agents look for their node for half a minute."""
PAIRS = [(job, number) for job in JOBS for number in (signal.SIGINT, signal.SIGTERM)]
USUAL = [("tile", signal.SIGTERM), ("train", signal.SIGINT)]
"""One job on Ray Data and one on Ray Train, a signal each; every job gets both signals in make test-all."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with embedded slides and a bundle, made without a job."""
    house = make_house(tmp_path_factory.mktemp("trained"), num_slides=8)
    learning = distmil.open_bags(house.store.root, run=RUN, split="train")
    distmil.fit(learning, config={"training": {"epochs": 2}}).save(house.store.path("models/net"))
    return Path(house.store.root)


def interrupt(
    home: Path, job: str, arguments: tuple[str, ...], said: str, number: int
) -> tuple[int, str, set[Process]]:
    """Send a job a signal in the middle of its work; return its exit code, what it said, and all that it started."""
    words, started = home / f"{job}.err", set[Process]()
    delay_s = random.Random(f"{job} {number}").uniform(0.2, 3.0)
    with words.open("w") as err:
        process = subprocess.Popen(
            command(job, *arguments), cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=err,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (background jobs ignore it)
        )  # fmt: skip
        deadline, said_s = time.monotonic() + TIMEOUT_S, None
        while process.poll() is None and time.monotonic() < deadline:
            started |= set(descendants([process.pid])[1:])
            if said_s is None and said in words.read_text():
                said_s = time.monotonic()
            if said_s is not None and time.monotonic() > said_s + delay_s:
                break
            time.sleep(0.2)
        process.send_signal(number)
        code = process.wait(TIMEOUT_S)
    return code, words.read_text(), started


def copied(trained: Path, home: Path, job: str) -> Path:
    """Copy what a job stands on, but not what it makes."""
    made = {"tile": (), "embed": ("patches",)}.get(job, ("patches", "embeddings", "labels", "models"))
    for folder in ("synthetic", *made):
        shutil.copytree(trained / folder, home / folder, copy_function=shutil.copy2)
    return home


@pytest.mark.parametrize(("job", "number"), PAIRS if IS_FULL else USUAL)
def test_a_job_that_is_interrupted_says_so_and_leaves_nothing_running(
    trained: Path, tmp_path: Path, job: str, number: int
) -> None:
    home = copied(trained, tmp_path, job)
    arguments, said = JOBS[job]
    code, words, started = interrupt(home, job, arguments, said, number)
    assert (code, f"{job}: interrupted; the same command goes on where it stopped" in words) == (128 + number, True), (
        words
    )
    assert "Traceback" not in words
    assert started
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := [process for process in started if process.is_alive]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    if job in {"train", "tune"}:
        assert "KILLED" in statuses(home)
        assert "RUNNING" not in statuses(home)
    done = (run_job if IS_FULL or job == "tile" else run_here)(home, job, *arguments)
    assert done.code == 0, done.err
    if job == "train":
        assert "run again goes on after epoch" in done.err
        assert done.answer["epochs"] == EPOCHS


def statuses(home: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("distmil")
    assert experiment is not None
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


@pytest.mark.skipif(not IS_FULL, reason="of a process without Ray: processes/test_tree.py; of a job: make test-all")
def test_a_second_signal_ends_a_job_at_once(trained: Path, tmp_path: Path) -> None:
    home = copied(trained, tmp_path, "tile")
    process = subprocess.Popen(
        command("tile", *JOBS["tile"][0]), cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not list(home.glob("patches/*/*/commit.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    started = descendants([process.pid])[1:]
    assert len(started) > 3
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)  # it may be over by now
    code = process.wait(10)
    assert code in {143, -signal.SIGTERM}  # Ray takes the handler away for a moment while it ends
    deadline = time.monotonic() + (GONE_WITHIN_S if code == 143 else AGENTS_GONE_WITHIN_S)
    while (left := [child for child in started if child.is_alive]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
