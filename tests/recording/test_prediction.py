"""The record of an evaluation on a real MLflow: whole, without identities, and closed as the job ends."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from distmil.cohort import Cohort, Slide
from distmil.config.loading import build_config
from distmil.evaluation.slide_results import slide_results
from distmil.inference.tables import INTERVALS, METRICS
from distmil.recording.prediction import PredictionRecord
from distmil.recording.shown import SHEETS
from distmil.storage.store import Store
from distmil.tracking import server
from distmil.tracking.tracker import Tracker
from tests.inference.test_mlflow_model import make_bundle

CLASSES = ["normal", "tumour"]
METRICS_OF_VAL = {"val": {"slide_auc": 0.9, "slide_ap": None}}
BUNDLE = dataclasses.replace(make_bundle(), digest="digest of the bundle")
SLIDES = [
    Slide(f"s{i:02}", f"/home/jane/s{i}.svs", label=i % 2, split="val", patient_id=f"jane{i}", site="jane's clinic",
          annotation_path="/home/jane/a.xml")
    for i in range(SHEETS + 4)
]  # fmt: skip
COHORT = Cohort(SLIDES, CLASSES)


@pytest.fixture(autouse=True)
def no_outage():
    """What this process learned of MLflow in another test is forgotten."""
    server.outage_of.cache_clear()


@pytest.fixture
def store(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    store = Store(str(tmp_path))
    folder = "predictions/jane-0123abcd"
    for slide in SLIDES:
        for name in ("sheet", "fused"):
            store.write(f"{folder}/maps/{slide.slide_id}_{name}.png", b"PNG")
    store.write_json(f"{folder}/{METRICS}", METRICS_OF_VAL)
    counts = {"slides": 12, "patients": 12, "positive_slides": 6, "slide_auc": [0.8, 1.0]}
    store.write_json(f"{folder}/{INTERVALS}", {"val": counts})
    return store


def results(*, doubtful=()):
    """The higher the number of a slide, the more abnormal it looks; the last but one is normal, and so wrong."""
    rows = {}
    for i, slide in enumerate(SLIDES[:-1]):
        value = 0.4 + i / 100 if slide.label == 0 else 0.6 + i / 100
        if i == SHEETS + 2:
            value = 0.9
        rows[slide.slide_id] = {
            "predicted": CLASSES[value >= 0.5], "probability": value, "bag": value, "max": value, "topk_mean": value,
            "regions": value, "num_patches": 5,
        }  # fmt: skip
    return slide_results(
        SLIDES, rows, classes=CLASSES, threshold=0.5, statuses={SLIDES[-1].slide_id: ("no_tissue", "jane")},
        doubts={name: ["jane's doubt"] for name in doubtful},
    )  # fmt: skip


def evaluate(store, *, kind="evaluate", error=None, **tracking):
    config = build_config(
        {
            "cohort": {"manifest": "/home/jane/lung.csv", "classes": CLASSES},
            "prediction": {"model": "/home/jane/model"},
            "tracking": tracking,
        }
    )
    record = PredictionRecord.of(kind, config, store, "jane-0123abcd")
    with record.opened(config, BUNDLE, COHORT, SLIDES):
        if error is not None:
            raise error
        record.complete(results(doubtful=["s01", "s03"]), METRICS_OF_VAL if kind == "evaluate" else {})
    return record.tracker


def run_of(tracker):
    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def files_of(tracker, folder):
    return [item.path.rpartition("/")[2] for item in MlflowClient(tracker.uri).list_artifacts(tracker.run_id, folder)]


def test_an_evaluation_is_a_run_with_metrics_data_and_a_description(store):
    run = run_of(evaluate(store))
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"evaluate {BUNDLE.run}-0123abcd")
    counts = {"slides/predicted": 11, "slides/dropped": 1, "slides/doubtful": 2, "slides/wrong": 1}
    assert run.data.metrics == {"final/val/slide_auc": 0.9, **counts}
    assert (run.data.tags["distmil.job"], run.data.tags["distmil.bundle_digest"]) == ("evaluate", BUNDLE.digest)
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("cohort", COHORT.fingerprint)
    assert [tag.value for tag in found.tags] == ["evaluation"]
    note = run.data.tags["mlflow.note.content"]
    assert "slide AUC **0.90** (95 % interval 0.80 to 1.00), 12 slides of 12 patients, 6 abnormal" in note
    assert "11 of 12 slides are predicted (5 normal, 6 tumour); 1 wrong, 2 in doubt" in note
    assert "distmil evaluate cohort.manifest=MANIFEST" in note
    assert "training.epochs" not in run.data.params  # it would be this job's default, and not the bundle's


def test_a_prediction_has_no_metrics_of_labels(store):
    (store_path,) = [Path(store.path("predictions/jane-0123abcd"))]
    for name in (METRICS, INTERVALS):
        (store_path / name).unlink()
    run = run_of(evaluate(store, kind="predict"))
    assert not [name for name in run.data.metrics if name.startswith("final")]
    assert [tag.value for tag in run.inputs.dataset_inputs[0].tags] == ["prediction"]


def test_wrong_slides_are_shown_first_then_doubtful_ones_and_each_once(store):
    first = evaluate(store)
    shown = files_of(first, "maps")
    assert len(shown) == SHEETS
    expected = [result.slide_id for result in results(doubtful=["s01", "s03"])][:SHEETS]
    assert expected[:3] == ["s10", "s01", "s03"]
    assert sorted(shown) == sorted(f"{name}_sheet.png" for name in expected)
    again = evaluate(store)
    assert again.run_id == first.run_id
    assert files_of(again, "maps") == shown


def test_no_identity_leaves_the_store(store, tmp_path):
    tracker = evaluate(store)
    run, client = run_of(tracker), MlflowClient(tracker.uri)
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (folder / "results" / "slides.csv").read_text("utf-8-sig").startswith('"slide_id","status","verdict"')
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        assert b"jane" not in path.read_bytes(), path
    inputs = [found.dataset.to_dictionary() for found in run.inputs.dataset_inputs]
    assert "jane" not in json.dumps([run.data.to_dictionary(), inputs])


def test_without_maps_in_the_record_no_slide_is_named(store, tmp_path):
    tracker = evaluate(store, maps=False)
    assert files_of(tracker, "maps") == []
    assert sorted(files_of(tracker, "results")) == [INTERVALS, METRICS]


@pytest.mark.parametrize(("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_ends_as_its_job_does_and_goes_on_when_the_job_is_repeated(store, error, status):
    with pytest.raises(type(error)):
        evaluate(store, error=error)
    uri = f"sqlite:///{store.path('mlflow.db')}"
    (run,) = MlflowClient(uri).search_runs(["1"])
    assert run.info.status == status
    assert "mlflow.note.content" in run.data.tags
    again = evaluate(store)
    assert (again.run_id, run_of(again).info.status) == (run.info.run_id, "FINISHED")


def test_it_lies_under_the_training_of_its_bundle(store):
    trained = Tracker(f"sqlite:///{store.path('mlflow.db')}", "distmil")
    trained.start("training", artifacts=store.path("x"), tags={"distmil.bundle_digest": BUNDLE.digest})
    assert run_of(evaluate(store)).data.tags["mlflow.parentRunId"] == trained.run_id


def test_a_note_that_is_damaged_costs_no_more_than_the_run(store):
    first = evaluate(store)
    store.write("predictions/jane-0123abcd/mlflow-evaluate.json", b"{")
    again = evaluate(store)
    assert again.run_id not in {None, first.run_id}


@pytest.mark.parametrize("uri", ["none", "http://127.0.0.1:9"])
def test_without_mlflow_the_job_goes_on(store, uri):
    tracker = evaluate(store, uri=uri)
    assert tracker.run_id is None
    assert "mlflow-evaluate.json" not in store.names("predictions/jane-0123abcd")
