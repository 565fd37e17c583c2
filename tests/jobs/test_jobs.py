"""The jobs end to end on a real local Ray."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from distmil.inference.scoring import READ_OUTS
from distmil.storage.store import Store
from tests.support.jobs import Done, kill_job_when, open_to_others, run_here, run_job
from tests.support.metrics import assert_close
from tests.support.scale import IS_FULL

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

SMALL = [
    "cohort.synthetic=8",
    "cohort.val_fraction=0.4",
    "training.epochs=3",
    "bags.slides_per_step=2",
    "model.feature_dim=16",
    "model.attention_dim=8",
    "model.dropout=0",
    "model.input_dropout=0",
    "training.run=small",
]
LEAN = ["tracking.uri=none", "prediction.maps=false"]
NO_PREDICTION = "prediction.split=test"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path) -> Done:
    """The main job, run once; as a process, on a Ray of its own, in make test-all (and so is tiling in make test)."""
    done = (run_job if IS_FULL else run_here)(home, "train", *SMALL)
    assert done.code == 0, done.err
    return done


def test_the_main_job_leaves_a_bundle_metrics_and_maps(home: Path, trained: Done) -> None:
    answer = trained.answer
    assert answer["run"] == "small"
    bundle = Path(answer["bundle"])
    assert {path.name for path in bundle.iterdir()} == {
        "model.safetensors", "config.json", "labels.json", "metrics.json", "commit.json"
    }  # fmt: skip
    assert json.loads((bundle / "labels.json").read_text())["classes"] == ["negative", "positive"]
    metrics = answer["metrics"]["val"]
    assert json.loads(Path(answer["metrics_file"]).read_text()) == answer["metrics"]
    assert Path(answer["metrics_file"]).parent == Path(answer["predictions"])
    report = Path(answer["report"])
    assert report == Path(answer["predictions"]) / "report.html"
    assert f"report: {report}" in trained.err
    page = report.read_text()
    assert f'<data value="{metrics["slide_auc"]}">' in page
    assert all(words in page for words in ("Training report", "Parts of the training loss", "data:image/jpeg"))
    assert str(home) not in page
    assert 0 <= metrics["slide_auc"] <= 1
    assert math.isfinite(metrics["slide_loss"])
    slides = pq.read_table(Path(answer["predictions"]) / "slides.parquet").to_pylist()
    assert len(slides) == answer["slides"]["ok"] > 0
    for row in slides:
        assert row["probability"] == row["bag"]
        patches = pq.read_table(Path(answer["predictions"]) / "patches" / f"{row['slide_id']}.parquet")
        assert patches.num_rows == row["num_patches"]
        np.testing.assert_allclose(
            patches["fused"].to_numpy(), patches["attention"].to_numpy() * patches["probability"].to_numpy(), rtol=1e-6
        )
        for name in ("attention", "probability", "fused"):
            with Image.open(Path(answer["maps"]) / f"{row['slide_id']}_{name}.png") as image:
                assert np.asarray(image).std() > 5
    assert "supervision:" in trained.err
    assert "losses: patch x 1, bag x 1, topk x 1, attention x 1" in trained.err
    assert f"storage: {home}" in trained.err


def test_what_is_stored_is_its_users_alone(home: Path, trained: Done) -> None:
    assert len(list(home.rglob("*"))) > 100
    assert open_to_others(home) == []


def test_the_bundle_is_committed_once_with_the_thresholds_of_validation(home: Path, trained: Done) -> None:
    store = Store(str(home))
    record = store.read_record("models/small/commit.json")
    assert record is not None
    assert len(record.parts) == 4
    assert all(store.is_intact("models/small", part) for part in record.parts)
    metrics = json.loads((home / "models/small/metrics.json").read_text())
    assert (metrics["epoch"], metrics["epochs"], metrics["last"]) == (2, 3, epochs(home, "small")[-1])
    labels = json.loads((home / "models/small/labels.json").read_text())
    chosen = {name: metrics["last"][f"val_threshold_{name}"] for name in READ_OUTS}
    assert labels["slide_thresholds"] == {name: 0.5 if value is None else value for name, value in chosen.items()}
    assert "thresholds chosen on" in trained.err
    rows = pq.read_table(home / "predictions/small/slides.parquet").to_pylist()
    threshold = labels["slide_thresholds"]["bag"]
    assert [row["predicted"] == "positive" for row in rows] == [row["probability"] >= threshold for row in rows]
    right = [row["predicted"] == row["label"] for row in rows]
    assert trained.answer["metrics"]["val"]["slide_accuracy"] == pytest.approx(np.mean(right))


def test_the_run_is_recorded(home: Path, trained: Done) -> None:
    tracking = trained.answer["tracking"]
    client = MlflowClient(tracking["uri"])
    run = client.get_run(tracking["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["losses.attention"] == "1.0"
    assert "cohort.manifest" not in run.data.params
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [0, 1, 2]
    assert run.data.metrics["final/val/slide_auc"] == pytest.approx(trained.answer["metrics"]["val"]["slide_auc"])
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert kept == {"bundle", "config.yaml", "maps", "results"}
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert str(home) not in (folder / "config.yaml").read_text()
    slides = Path(trained.answer["results"]).read_text("utf-8-sig").splitlines()[1:]
    shown = {f"{line.split(',')[0][1:-1]}_sheet.png" for line in slides[:8]}
    assert {path.name for path in (folder / "maps").iterdir()} == shown
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("synthetic-8", run.data.params["data.fingerprint"])
    place = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    assert place in trained.err


def test_a_finished_run_is_not_done_again(home: Path, trained: Done) -> None:
    before = times(home)
    bundle = (home / "models/small/commit.json").read_bytes()
    report = (home / "predictions/small/report.html").read_text()
    again = run_here(home, "train", *SMALL)
    assert again.code == 0, again.err
    assert "run small is trained already" in again.err
    assert again.answer["metrics"] == trained.answer["metrics"]
    assert again.answer["tracking"]["run_id"] == trained.answer["tracking"]["run_id"]
    kept = ("patches", "embeddings", "labels", "predictions/small/patches", "predictions/small/maps")
    assert not {name for name in changes(home, before) if name.startswith(kept)}
    assert (home / "models/small/commit.json").read_bytes() == bundle
    page = (home / "predictions/small/report.html").read_text()
    assert page.partition("<h2>Configuration")[0] == report.partition("<h2>Configuration")[0]  # use_gpu was not said


def test_two_workers_give_the_loss_of_one(home: Path, trained: Done) -> None:
    done = run_here(home, "train", *SMALL, *LEAN, NO_PREDICTION, "training.run=pair", "training.num_workers=2")
    assert done.code == 0, done.err
    for one, two in zip(epochs(home, "small"), epochs(home, "pair"), strict=True):
        assert_close(two, one, rel=1e-4, abs=1e-5)


def test_views_are_embedded_of_training_slides_alone_and_trained_on(home: Path, trained: Done) -> None:
    plain = set((home / "embeddings").iterdir())
    done = run_here(home, "train", *SMALL, *LEAN, NO_PREDICTION, "training.run=viewed", "encoder.views=1")
    assert done.code == 0, done.err
    assert "no held-out slides were predicted" in (home / "predictions/viewed/report.html").read_text()
    (view,) = set((home / "embeddings").iterdir()) - plain
    entries = json.loads((home / "checkpoints" / "viewed" / "cohort.json").read_text())["values"]
    assert {folder.name for folder in view.iterdir()} == {
        entry["slide_id"] for entry in entries if entry["split"] == "train"
    }
    assert all(len(entry["views"]) == (entry["split"] == "train") for entry in entries)
    assert [row["loss"] for row in epochs(home, "viewed")] != [row["loss"] for row in epochs(home, "small")]


def test_predict_judges_what_it_can_and_names_the_rest(home: Path, trained: Done, data: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    paths = {
        "scan": data / "slides/CMU-1-Small-Region.svs",
        "tiny": data / "slides/tiny-16px.svs",
        "screen": data / "slides/boxes.tiff",
        "broken": data / "broken_slides/broken.svs",
        "odd": data / "broken_slides/unopenable.tiff",
    }
    rows = [["slide_id", "slide_path"], *([name, str(path.resolve())] for name, path in paths.items())]
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    asked = (f"cohort.manifest={manifest}", "prediction.model=small", "prediction.run=scan")
    refused = run_here(home, "predict", *asked)
    assert refused.code == 1
    assert "4 of 5 slides cannot be used (1 no_mpp, 1 too_small, 2 unreadable)" in refused.err
    done = run_here(home, "predict", *asked, "tiling.max_bad_fraction=0.9")
    assert done.code == 0, done.err
    assert done.answer["slides"] == {"ok": 1, "too_small": 1, "no_mpp": 1, "unreadable": 2}
    assert "4 of 5 slides were dropped" in done.err
    assert "4 of 5 slides were dropped" not in done.err.split("predict: 1/1")[0]  # it is the last that is said
    slides = pq.read_table(Path(done.answer["predictions"]) / "slides.parquet").to_pylist()
    assert [(row["slide_id"], row["label"]) for row in slides] == [("scan", None)]
    with Image.open(Path(done.answer["maps"]) / "scan_fused.png") as image:
        assert image.height > image.width


def evaluate(home: Path, *arguments: str) -> Done:
    manifest = home / "synthetic" / "8" / "manifest.csv"
    return run_here(
        home, "evaluate", f"cohort.manifest={manifest}", "cohort.val_fraction=0.4", "prediction.model=small",
        "prediction.run=again", "prediction.split=val", "prediction.maps=false", *arguments,
    )  # fmt: skip


def test_evaluate_agrees_with_the_main_job(home: Path, trained: Done) -> None:
    done = evaluate(home)
    assert done.code == 0, done.err
    assert done.answer["metrics"]["val"] == pytest.approx(trained.answer["metrics"]["val"])
    page = Path(done.answer["report"]).read_text()
    assert f'<data value="{done.answer["metrics"]["val"]["slide_auc"]}">' in page
    assert "Evaluation report" in page
    assert "data:image" not in page  # without maps
    run = MlflowClient(done.answer["tracking"]["uri"]).get_run(done.answer["tracking"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == trained.answer["tracking"]["run_id"]
    assert run.data.metrics["final/val/slide_auc"] == pytest.approx(done.answer["metrics"]["val"]["slide_auc"])


def predict(home: Path, *arguments: str) -> Done:
    manifest = home / "synthetic" / "8" / "manifest.csv"
    return run_here(home, "predict", f"cohort.manifest={manifest}", "prediction.model=small", *arguments)


def test_predictions_of_other_slides_lie_elsewhere_or_are_refused(home: Path, trained: Done, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    before = times(copy / "predictions/small")
    refused = predict(copy, "prediction.run=small")
    assert refused.code == 2
    assert "predictions/small holds the predictions of another bundle, or of other slides or splits" in refused.err
    done = predict(copy)
    assert done.code == 0, done.err
    folder = Path(done.answer["predictions"])
    assert folder.name.startswith("small-")
    assert not (folder / "metrics.json").exists()
    assert times(copy / "predictions/small") == before


def test_what_is_gone_damaged_or_edited_is_predicted_again(home: Path, trained: Done, tmp_path: Path) -> None:
    copy = copied(home, tmp_path)
    folder = copy / "predictions/small"
    ids = sorted(path.stem for path in (folder / "patches").iterdir())
    outline = next(path for path in sorted((copy / "synthetic/8/annotations").iterdir()) if path.stem in ids)
    annotated = outline.stem
    plain = [i for i in ids if i != annotated]
    (folder / f"patches/{plain[0]}.parquet").unlink()
    (folder / f"maps/{plain[1]}_fused.png").write_bytes(b"garbage")
    outline.write_text(outline.read_text() + "\n")
    before = times(copy)
    again = run_here(
        copy, "evaluate", f"cohort.manifest={copy}/synthetic/8/manifest.csv", "cohort.val_fraction=0.4",
        "prediction.model=small", "prediction.run=small",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert "predictions of 2 slides are gone or damaged, and are made again" in again.err
    made = {name.removeprefix("predictions/small/") for name in changes(copy, before) if "predictions/small/" in name}
    maps = {
        f"maps/{i}_{name}.png"
        for i in (annotated, *plain[:2])
        for name in ("attention", "probability", "fused", "sheet")
    }
    assert {name for name in made if name.startswith("maps/")} == maps
    assert {name for name in made if name.startswith("patches/")} == {f"patches/{plain[0]}.parquet"}
    for name in made - {f"records/maps/{annotated}.json"}:
        if not name.endswith(
            ("slides.json", "metrics.json", "slides.csv", "mlflow-evaluate.json", "report.html")
        ):  # of which two hold paths, and the page is that of an evaluation
            assert (folder / name).read_bytes() == (home / "predictions/small" / name).read_bytes(), name
    assert again.answer["metrics"] == trained.answer["metrics"]
    edited = changes(copy, before)  # of the outline its labels alone
    assert {Path(name).stem for name in edited if name.startswith("labels/")} == {annotated}
    assert not {name for name in edited if name.startswith(("patches", "embeddings"))}


@pytest.mark.skipif(not IS_FULL, reason="a pre-training is killed, a training interrupted: make test; all: test-all")
def test_kill_9_in_training_then_the_same_command_goes_on(home: Path, trained: Done, tmp_path: Path) -> None:
    broken = copied(home, tmp_path)
    for folder in ("checkpoints", "models", "predictions"):
        shutil.rmtree(broken / folder)
    kill_job_when(broken, (broken / "checkpoints/small/latest.json").exists, "train", *SMALL, *LEAN, NO_PREDICTION)
    assert len(epochs(broken, "small")) < 3
    done = run_job(broken, "train", *SMALL, *LEAN, NO_PREDICTION)
    assert done.code == 0, done.err
    assert "run small goes on after epoch" in done.err
    assert epochs(broken, "small") == epochs(home, "small")
    assert (broken / "models/small/model.safetensors").read_bytes() == (
        home / "models/small/model.safetensors"
    ).read_bytes()


def copied(home: Path, tmp_path: Path) -> Path:
    """Return a copy of a home with its times kept."""
    copy = tmp_path / "home"
    shutil.copytree(home, copy, copy_function=shutil.copy2)
    return copy


def epochs(home: Path, run: str) -> list[dict[str, float]]:
    return json.loads((home / "checkpoints" / run / "latest.json").read_text())["record"]["info"]["history"]["rows"]


def changes(folder: Path, before: dict[str, int]) -> set[str]:
    """Return the files that are new or newer; the gathered table of all slides is always written again."""
    return {n for n, time in times(folder).items() if before.get(n) != time and not n.endswith("/slides.parquet")}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
