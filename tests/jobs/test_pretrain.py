"""The job `pretrain` as a user runs it: killed twice, it ends as one that was never killed, and training takes it."""

import json
from pathlib import Path

import pytest
import torch

from distmil.bags.bag import BagEntry
from distmil.config.loading import load_config
from distmil.encoders.registry import prepare_encoder
from distmil.pipeline.pretraining.job import config_of_part
from distmil.pretraining.checkpoints import read_progress
from distmil.pretraining.run import open_run
from distmil.storage.store import Store
from distmil.training.workers import Workers
from tests.support.jobs import kill_job_when, run_here
from tests.support.trained import make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]
STEPS = 40
SMALL = (
    "cohort.synthetic=6", "cohort.val_fraction=0.34", "encoder.name=texture+timm:test_efficientnet",
    "encoder.weights=random", "encoder.batch_size=64", "pretraining.run=own", "pretraining.epochs=9",
    f"pretraining.steps={STEPS}", "pretraining.batch_patches=16", "pretraining.view_px=32",
    "pretraining.hidden_dim=16", "pretraining.projection_dim=16", "pretraining.probe_patches=64",
    "pretraining.checkpoint_minutes=0.0001", "tracking.uri=none",
)  # fmt: skip


def losses_in(folder: str) -> list[float]:
    lines = (Path(folder) / "losses.csv").read_text().split()[1:]
    assert [int(line.partition(",")[0]) for line in lines] == list(range(1, len(lines) + 1))
    return [float(line.partition(",")[2]) for line in lines]


def finished_here(store: Store, entries: list[BagEntry]) -> list[float]:
    """The losses of the same pre-training, in this process and without a break."""
    config = config_of_part(load_config(None, SMALL))
    spec = prepare_encoder(config.encoder, store)
    run = open_run(config, entries, spec, store, name=None, device=torch.device("cpu"))
    while not run.is_finished:
        run.advance(Workers(), lambda _loss: None)
    return run.history.losses


def test_a_job_that_is_killed_twice_goes_on_and_training_takes_its_weights(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_house(home, num_slides=6)  # tiles and labels the slides
    store = Store(str(home))

    def has_steps(count: int) -> bool:
        found = read_progress(store, "pretrain-own")
        return found is not None and found[1] >= count

    seen = []
    for count in (3, 8):
        kill_job_when(home, lambda count=count: has_steps(count), "pretrain", *SMALL, "training.use_gpu=false")
        found = read_progress(store, "pretrain-own")
        assert found is not None
        seen.append(found[1])
    assert 3 <= seen[0] < seen[1] < STEPS
    done = run_here(home, "pretrain", *SMALL, "training.num_workers=2")
    assert done.code == 0, done.err
    assert f"run own goes on after step {seen[1]} of {STEPS}" in done.err
    answer = done.answer
    assert (answer["run"], answer["steps"], answer["probe"]) == ("own", STEPS, "patch labels")
    (line,) = [line for line in done.err.splitlines() if line.startswith("next: ")]
    assert f"train.py {' '.join(SMALL[:3])} encoder.batch_size=64 tracking.uri=none" in line.replace("  ", " ")
    assert line.endswith(f"encoder.weights={answer['weights']}")
    entries = store.read_checked("checkpoints/pretrain-own/cohort.json", owner="pretrain-own")
    unbroken = finished_here(store, [BagEntry.from_json(entry) for entry in entries])
    assert losses_in(answer["weights"]) == pytest.approx(unbroken, rel=1e-3)  # other numbers of threads round otherwise
    assert {entry["split"] for entry in entries} == {"train"}
    assert json.loads((Path(answer["weights"]) / "history.json").read_text())["steps"] == STEPS

    settings = (*SMALL[:3], f"encoder.weights={answer['weights']}", "encoder.engine=torch", "tracking.uri=none")
    quick = ("training.run=first", "training.epochs=1", "model.feature_dim=8", "model.attention_dim=4")
    trained = run_here(home, "train", *settings, *quick, "prediction.maps=false")
    assert trained.code == 0, trained.err
