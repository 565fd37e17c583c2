"""Searches on a real local Ray: every algorithm, folds, workers, shares of a GPU, and a driver that is killed."""

import csv
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from distmil.config.loading import build_config
from distmil.pipeline.job import Job
from distmil.pipeline.tuning import job
from distmil.pipeline.tuning.tune_adapter import concurrency, trial_resources
from distmil.storage.store import Store
from tests.jobs.test_mlflow_server import Server
from tests.support.jobs import interrupt_job_when, kill_job_when, run_here
from tests.support.ports import free_port
from tests.support.scale import IS_FULL
from tests.support.trained import make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

EPOCHS, TRIALS = (4, 6) if IS_FULL else (2, 4)
AT_ONCE = None if IS_FULL else 1
"""Trials side by side, where they are not the property: each is a process more to start."""
SMALL: dict[str, dict[str, Any]] = {
    "cohort": {"synthetic": 12, "val_fraction": 0.34},
    "encoder": {"name": "texture"},
    "model": {"feature_dim": 16, "attention_dim": 8},
    "bags": {"slides_per_step": 2},
    "training": {"epochs": EPOCHS},
    "tracking": {"uri": "none"},
    "search": {"trials": 4, "repeats": 2, "grace_epochs": 1, "ablations": False, "concurrent": AT_ONCE},
}
FLAT = [
    f"{section}.{key}={'null' if value is None else value}"
    for section, keys in SMALL.items()
    for key, value in keys.items()
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage root, whose slides are tiled and embedded."""
    return Path(make_house(tmp_path_factory.mktemp("home"), num_slides=12).store.root)


def search(home: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Run a search in this process and return its answer."""
    values = {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in {**SMALL, **sections}}
    values["training"] = {"use_gpu": False, **values["training"]}
    return job.run(Job(build_config(values), Store(str(home))))


def settings_of(answer: dict[str, Any]) -> set[tuple[float, ...]]:
    return {tuple(float(row[key]) for key in answer["winner"]["values"]) for row in trials_of(answer)}


def trials_of(answer: dict[str, Any]) -> list[dict[str, str]]:
    with (Path(answer["folder"]) / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_that_is_interrupted_and_killed_goes_on_and_loses_nothing(home: Path) -> None:
    """It is interrupted, too, in make test-all alone: make test interrupts a training (test_interruption.py)."""
    arguments = [*FLAT, "tracking.uri=null", "search.run=killed", f"search.trials={TRIALS}"]
    folder = home / "searches" / "killed" / "trials"

    def over() -> dict[str, dict[str, Any]]:
        records = {path.stem: json.loads(path.read_text())["values"] for path in folder.glob("*.json")}
        return {key: record for key, record in records.items() if record["status"] in {"finished", "stopped"}}

    if IS_FULL:
        stopped = interrupt_job_when(home, lambda: len(over()) >= 1, "tune", *arguments)
        assert stopped.code == 130, stopped.err
        assert "interrupted; the same command goes on" in stopped.err
        assert len(over()) < TRIALS
        parent = Store(str(home)).read_checked("checkpoints/killed/mlflow.json", owner="killed")
        assert MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_run(parent).info.status == "KILLED"
    kill_job_when(home, lambda: len(over()) >= TRIALS // 2, "tune", *arguments)
    before = over()
    done = run_here(home, "tune", *arguments)
    assert done.code == 0, done.err
    answer = done.answer
    assert sum(answer["trials"].values()) == TRIALS
    assert set(answer["trials"]) <= {"finished", "stopped"}
    after = over()
    assert {key: after[key] for key in before} == before  # what was over was not trained again
    compared = {json.dumps(answer[name]["values"], sort_keys=True) for name in ("winner", "default")}
    assert len(after) == TRIALS + 2 * len(compared)
    assert {"mean", "sd", "seeds"} <= set(answer["winner"])
    assert {"mean", "sd", "seeds"} <= set(answer["default"])
    for name in ("report.md", "trials.csv", "comparison.csv", "result.json"):
        assert (Path(answer["folder"]) / name).stat().st_size > 50
    for name in ("parallel.png", "parameters.png", "comparison.png"):
        with Image.open(Path(answer["folder"]) / name) as image:
            assert image.width > 300
            assert len(image.convert("L").getcolors() or []) > 20

    client = MlflowClient(answer["tracking"]["uri"])
    experiment = client.get_experiment_by_name("distmil")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    parent = answer["tracking"]["run_id"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    of_trials = {record["mlflow"] for record in after.values()}
    kept = [run for run in children if run.info.run_id in of_trials]
    assert len(kept) == len(of_trials) == len(after)
    assert {run.info.status for run in kept} == {"FINISHED"}
    assert Counter(run.data.tags["distmil.kind"] for run in kept) == {"trial": TRIALS, "repeat": len(after) - TRIALS}

    best = yaml.safe_load((Path(answer["best_config"])).read_text())
    assert {f"losses.{name}": value for name, value in best["losses"].items()} == {
        key: value for key, value in answer["winner"]["values"].items() if key.startswith("losses.")
    }


@pytest.mark.skipif(not IS_FULL, reason="functions show it: tuning/test_record.py; over HTTP: make test-all")
def test_a_search_is_recorded_over_http_and_outlives_the_server(home: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, free_port())
    server.start()
    folder = home / "searches" / "http" / "trials"
    arguments = [*FLAT, f"tracking.uri={server.uri}", "search.run=http"]

    def stop_half_way() -> None:
        deadline_s = time.monotonic() + 300
        while len(list(folder.glob("*.json"))) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        server.stop()

    stopping = threading.Thread(target=stop_half_way)
    try:
        stopping.start()
        done = run_here(home, "tune", *arguments)
        stopping.join()
        assert done.code == 0, done.err
        assert "MLflow does not answer" in done.err
        assert "trials; the same command records it when MLflow answers" in done.err
        server.start()
        server.outage_of.cache_clear()  # as in a process of its own
        again = run_here(home, "tune", *arguments)
        assert again.code == 0, again.err
        assert again.answer["winner"] == done.answer["winner"]
        client = MlflowClient(server.uri)
        parent = client.get_run(again.answer["tracking"]["run_id"])
        runs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["distmil.verdict"]
        records = [json.loads(path.read_text())["values"] for path in folder.glob("*.json")]
        assert {run.info.status for run in runs} == {"FINISHED"}  # those of the outage as well
        assert sorted(run.info.run_id for run in runs) == sorted(record["mlflow"] for record in records)
        assert all(run.data.params["losses.bag"] and "val/slide_auc" in run.data.metrics for run in runs)
    finally:
        server.stop()


def test_a_space_that_makes_no_sense_is_bad_input(home: Path) -> None:
    done = run_here(home, "tune", *FLAT, "search.space.bags.topk=[2]")
    assert done.code == 2
    assert "search.space.bags.topk: there is no such key" in done.err


def test_a_grid_on_folds_judges_val_in_the_comparison_alone(home: Path) -> None:
    values = {"algorithm": "grid", "space": {"bags.top_k": [1, 4]}, "folds": 2, "stopping": "none"}
    answer = search(home, search=values)
    assert sorted(row["bags.top_k"] for row in trials_of(answer)) == ["1", "4"]
    assert {row["status"] for row in trials_of(answer)} == {"finished"}
    assert "held_out_mean" in answer["winner"]
    records = [json.loads(path.read_text())["values"] for path in (Path(answer["folder"]) / "trials").glob("*.json")]
    assert all(("held_out_slide_auc" in record["rows"][-1]) == record["is_repeat"] for record in records)
    assert {len(record["rows"]) for record in records} == {EPOCHS}
    assert search(home, search=values) == answer  # finished: nothing is trained, or its seconds would differ
    assert [
        json.loads(path.read_text())["values"] for path in (Path(answer["folder"]) / "trials").glob("*.json")
    ] == records
    assert [path.name for path in (home / "checkpoints" / answer["run"]).iterdir() if path.suffix != ".json"] == []


def test_optuna_draws_trials_after_the_default(home: Path) -> None:
    values = {"algorithm": "optuna", "run": "tpe", "repeats": 0, "trials": 3}
    answer = search(home, search=values)
    assert "one trial proves nothing" in answer["verdict"] or "default values are the best" in answer["verdict"]
    drawn = settings_of(answer)
    assert tuple(answer["default"]["values"].values()) in drawn
    more = search(home, search={**values, "trials": 4})
    assert sum(more["trials"].values()) == len(settings_of(more)) == 4
    assert drawn < settings_of(more)


def test_trials_may_have_two_workers_of_their_own(home: Path) -> None:
    values = {"trials": 1, "repeats": 0, "metric": "loss"}
    model = {"dropout": 0.0, "input_dropout": 0.0}  # which workers draw apart
    answer = search(home, model=model, training={"num_workers": 2, "epochs": 2}, search={**values, "run": "two"})
    assert answer["trials"] == {"finished": 1}
    if IS_FULL:  # in make test two workers and one are compared in test_jobs.py
        alone = search(home, model=model, training={"epochs": 2}, search={**values, "run": "alone"})
        scores = [float(found["winner"]["search_score"]) for found in (answer, alone)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert not list((home / "ray-train").glob("two-*"))
    assert not list((home / "checkpoints").glob("two-*/*"))


@pytest.mark.skipif(not IS_FULL, reason="functions show it: tuning/test_trials.py and test_trial_records.py")
def test_a_setting_that_cannot_train_fails_alone(home: Path) -> None:
    space = {"losses.bag": [1.0, 0.0], "losses.topk": [0.0], "losses.patch": [0.0], "losses.attention": [0.0]}
    answer = search(home, search={"algorithm": "grid", "space": space, "repeats": 0, "run": "broken"})
    assert answer["trials"] == {"finished": 1, "failed": 1}
    failed = next(row for row in trials_of(answer) if row["status"] == "failed")
    assert "at least one weight must be above 0" in failed["error"]


def test_trials_share_a_gpu(home: Path) -> None:
    for share, wanted in ((1.0, 1), (0.5, 2), (0.25, 2)):  # two cores carry two trials
        config = build_config({"training": {"use_gpu": True}, "search": {"gpus_per_trial": share}})
        assert concurrency(config, trial_resources(config, is_gpu=True)) == wanted
    values = {"gpus_per_trial": 0.5, "trials": 2, "repeats": 0, "concurrent": None, "run": "shares"}
    answer = search(home, training={"use_gpu": True, "epochs": 2}, search=values)
    assert sum(answer["trials"].values()) == 2
