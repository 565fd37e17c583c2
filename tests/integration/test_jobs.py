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

from tests.integration.jobrunning import ROOT, Done, kill_job_when, run_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = [
    "cohort.synthetic=8",
    "cohort.val_fraction=0.4",
    "training.epochs=3",
    "bags.slides_per_step=2",
    "model.feature_dim=16",
    "model.attention_dim=8",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path) -> Done:
    """The main job, run once."""
    done = run_job(home, "train", *SMALL, "training.run=small")
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


def test_the_run_is_recorded(home: Path, trained: Done) -> None:
    tracking = trained.answer["tracking"]
    client = MlflowClient(tracking["uri"])
    run = client.get_run(tracking["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["losses.attention"] == "1.0"
    assert "cohort.manifest" not in run.data.params
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]
    assert run.data.metrics["final_val_slide_auc"] == pytest.approx(trained.answer["metrics"]["val"]["slide_auc"])
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"bundle", "config.yaml", "maps"}
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert str(home) not in (folder / "config.yaml").read_text()
    assert list((folder / "maps").glob("*_fused.png"))


def test_a_finished_run_is_not_done_again(home: Path, trained: Done) -> None:
    before = times(home)
    again = run_job(home, "train", *SMALL, "training.run=small")
    assert again.code == 0, again.err
    assert "run small is trained already" in again.err
    assert again.answer["metrics"] == trained.answer["metrics"]
    assert again.answer["tracking"]["run_id"] == trained.answer["tracking"]["run_id"]
    changed = {name for name, time in times(home).items() if before.get(name) != time}
    kept = ("patches", "embeddings", "labels")
    assert not {n for n in changed if n.startswith(kept) and not n.endswith("slides.parquet")}
    assert not {name for name in changed if name.startswith(f"predictions/small/{'patches'}")}


def test_another_configuration_under_the_same_name_is_refused(home: Path, trained: Done) -> None:
    done = run_job(home, "train", *SMALL, "training.run=small", "training.lr=0.5")
    assert done.code == 2
    assert "training.run = 'small' was started with something else" in done.err
    assert "training.lr: 0.001 then, 0.5 now" in done.err


def test_two_workers_give_the_loss_of_one(home: Path, trained: Done) -> None:
    exact = ["model.dropout=0", "model.input_dropout=0", "tracking.uri=none", "prediction.maps=false"]
    histories = []
    for workers in (1, 2):
        run = f"workers-{workers}"
        done = run_job(home, "train", *SMALL, *exact, f"training.run={run}", f"training.num_workers={workers}")
        assert done.code == 0, done.err
        record = json.loads((home / "checkpoints" / run / "latest.json").read_text())
        histories.append(record["info"]["history"]["rows"])
    for one, two in zip(*histories, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_predict_judges_what_it_can_and_names_the_rest(home: Path, trained: Done, data: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    paths = {
        "scan": data / "slides/CMU-1-Small-Region.svs",
        "tiny": data / "slides/tiny-16px.svs",
        "coarse": data / "slides/boxes.tiff",
        "broken": data / "broken_slides/broken.svs",
        "odd": data / "broken_slides/unopenable.tiff",
    }
    rows = [["slide_id", "slide_path"], *([name, str(path.resolve())] for name, path in paths.items())]
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    done = run_job(home, "predict", f"cohort.manifest={manifest}", "prediction.model=small", "prediction.run=scan")
    assert done.code == 0, done.err
    assert done.answer["slides"] == {"ok": 1, "too_small": 1, "too_coarse": 1, "unreadable": 2}
    assert "4 of 5 slides are skipped" in done.err
    slides = pq.read_table(Path(done.answer["predictions"]) / "slides.parquet").to_pylist()
    assert [(row["slide_id"], row["label"]) for row in slides] == [("scan", None)]
    with Image.open(Path(done.answer["maps"]) / "scan_fused.png") as image:
        assert image.height > image.width


def test_evaluate_agrees_with_the_main_job(home: Path, trained: Done) -> None:
    manifest = home / "synthetic" / "8" / "manifest.csv"
    done = run_job(
        home, "evaluate", f"cohort.manifest={manifest}", "cohort.val_fraction=0.4", "prediction.model=small",
        "prediction.run=again", "prediction.split=val", "prediction.maps=false",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.answer["metrics"]["val"] == pytest.approx(trained.answer["metrics"]["val"])
    clash = run_job(home, "evaluate", f"cohort.manifest={manifest}", "prediction.model=small", "tiling.patch_px=96")
    assert clash.code == 2
    assert "tiling.patch_px = 96: the bundle small was trained with 224" in clash.err


def test_an_edited_outline_and_another_rule_redo_labels_alone(home: Path, trained: Done, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy, copy_function=shutil.copy2)
    outline = next((copy / "synthetic/8/annotations").glob("*.xml"))
    outline.write_text(outline.read_text().replace('PartOfGroup="Tumor"', 'PartOfGroup="Tumor" '))
    before = times(copy)
    done = run_job(copy, "train", *SMALL, "training.run=edited", "tracking.uri=none", "prediction.maps=false")
    assert done.code == 0, done.err
    changed = {name for name, time in times(copy).items() if before.get(name) != time}
    labels = {name for name in changed if name.startswith("labels/")}
    assert {Path(name).stem for name in labels} == {outline.stem}
    assert not {n for n in changed if n.startswith(("patches", "embeddings")) and not n.endswith("slides.parquet")}
    before = times(copy)
    done = run_job(
        copy, "train", *SMALL, "labels.positive_at=0.5", "training.run=rule", "tracking.uri=none",
        "prediction.maps=false",
    )  # fmt: skip
    assert done.code == 0, done.err
    changed = {name for name, time in times(copy).items() if before.get(name) != time}
    assert len({Path(name).stem for name in changed if name.startswith("labels/")}) == 8
    assert not {n for n in changed if n.startswith(("patches", "embeddings")) and not n.endswith("slides.parquet")}


def test_a_replaced_slide_is_done_again(home: Path, trained: Done, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy, copy_function=shutil.copy2)
    slides = sorted((copy / "synthetic/8/slides").glob("*.tif"))
    shutil.copy(slides[1], slides[0])
    before = times(copy)
    done = run_job(copy, "embed", "cohort.synthetic=8")
    assert done.code == 0, done.err
    changed = {name for name, time in times(copy).items() if before.get(name) != time}
    shards = {name for name in changed if name.endswith((".parquet", ".arrow")) and "slides.parquet" not in name}
    assert {Path(name).parent.name for name in shards} == {slides[0].stem}


@pytest.mark.parametrize("stage", ["tiling", "embedding", "training"])
def test_kill_9_then_the_same_command_ends_as_an_unbroken_run(
    home: Path, trained: Done, tmp_path: Path, stage: str
) -> None:
    broken = tmp_path / "home"
    shutil.copytree(home / "synthetic", broken / "synthetic", copy_function=shutil.copy2)
    moments = {
        "tiling": lambda: len(list(broken.glob("patches/*/*/commit.json"))) >= 2,
        "embedding": lambda: len(list(broken.glob("embeddings/*/*/part-*.arrow"))) >= 2,
        "training": (broken / "checkpoints/small/latest.json").exists,
    }
    arguments = [*SMALL, "training.run=small", "tracking.uri=none", "prediction.maps=false"]
    kill_job_when(broken, moments[stage], "train", *arguments)
    done = run_job(broken, "train", *arguments)
    assert done.code == 0, done.err
    if stage == "training":
        assert "goes on after epoch" in done.err
    assert shards(broken) == shards(home)
    assert done.answer["metrics"]["val"] == pytest.approx(trained.answer["metrics"]["val"], rel=1e-5)


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def shards(folder: Path) -> dict[str, bytes]:
    """Return every committed shard's bytes; there must be nothing half written beside them."""
    found = {}
    for stage in ("patches", "embeddings", "labels"):
        for path in (folder / stage).rglob("*"):
            if path.is_file() and path.suffix in {".parquet", ".arrow"} and not path.name.startswith("."):
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_project_root_is_where_the_jobs_are() -> None:
    assert (ROOT / "jobs" / "train.py").is_file()
