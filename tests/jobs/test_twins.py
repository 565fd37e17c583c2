"""Two jobs of one name at once: the later one takes over and finishes, the earlier one says so and fails."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import ray

from distmil.storage.store import Store
from tests.support.jobs import ROOT, TIMEOUT_S, Done, command, environment, run_here
from tests.support.scale import IS_FULL
from tests.support.trained import make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not IS_FULL, reason="functions show it: training/test_checkpoints.py; as jobs: make test-all"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

EPOCHS = 40
SMALL = ("cohort.synthetic=8", "tracking.uri=none", "prediction.split=test", "training.use_gpu=false")
TRAIN = ("training.run=twin", f"training.epochs={EPOCHS}", "model.feature_dim=64", "training.num_workers=1")
TUNE = ("search.run=twin", "search.trials=12", "search.repeats=2", "search.ablations=false", "training.epochs=8")


@pytest.fixture
def home(tmp_path: Path, local_ray: None) -> Path:
    """A home whose slides are embedded."""
    make_house(tmp_path, num_slides=8)
    return tmp_path


def run_both(home: Path, job: str, arguments: tuple[str, ...], traces: str) -> tuple[Done, Done]:
    """Start a job in a process, and the same here as soon as the first one left traces, both on the Ray that runs."""
    address = ray.get_runtime_context().gcs_address
    first = subprocess.Popen(
        command(job, *SMALL, *arguments),
        cwd=ROOT, env={**environment(home), "RAY_ADDRESS": address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not list(home.glob(traces)) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    second = run_here(home, job, *SMALL, *arguments)
    out, err = first.communicate(timeout=TIMEOUT_S)
    return Done(first.returncode, out, err), second


def test_of_two_trainings_of_one_name_the_later_one_finishes(home: Path) -> None:
    first, second = run_both(home, "train", TRAIN, "checkpoints/twin/latest.json")
    assert first.code == 1, first.err
    assert "run twin: another job took it over" in first.err
    assert not first.out
    assert second.code == 0, second.err
    assert second.answer["epochs"] == EPOCHS
    record = Store(str(home)).read_record("checkpoints/twin/latest.json")
    assert record is not None
    assert len(record.info["history"]["rows"]) == EPOCHS
    metrics = json.loads((home / "models" / "twin" / "metrics.json").read_text())
    assert metrics["epochs"] == EPOCHS


def test_of_two_searches_of_one_name_the_later_one_finishes(home: Path) -> None:
    first, second = run_both(home, "tune", TUNE, "searches/twin/trials/*.json")
    assert first.code == 1, first.err
    assert "run twin: another job took it over" in first.err
    assert second.code == 0, second.err
    assert sum(second.answer["trials"].values()) == 12
    assert "failed" not in second.answer["trials"]
