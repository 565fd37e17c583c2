"""A trained encoder through the main job: what is trained, what stays, and the scores of its bundle."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import distmil
from distmil.encoders.registry import encoder_state, prepare_encoder
from distmil.pipeline.training.worker import read_history
from distmil.storage.store import Store
from tests.support.jobs import kill_job_when, run_here
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.scale import IS_FULL
from tests.support.slides import tissue_image

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]
GIVEN = (
    "encoder.name=timm:test_vit", "encoder.weights=random", "tiling.patch_px=32", "tiling.strategy=crop",
    "tiling.encode=png", "training.epochs=2", "training.encoder_lr=1e-3", "training.warmup_steps=0",
    "model.feature_dim=8", "model.attention_dim=4", "tracking.uri=none", "prediction.maps=false",
    "encoder.engine=torch", "encoder.precision=fp32", "encoder.batch_size=16", "encoder.views=1",
)  # fmt: skip
"""A batch is smaller than a slide, which passes in chunks."""
PARTS = ("last", "lora", "all") if IS_FULL else ("last",)
"""Functions show all of them: training/test_trained_encoder.py."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slides of 15 to 24 patches, positive ones darker."""
    folder, rows = tmp_path_factory.mktemp("cohort"), []
    for number in range(8):
        size, label = (160 + 32 * (number // 4), 96 + 32 * (number % 2)), number // 2 % 2
        save_jpeg_tiff(folder / f"s{number}.tif", tissue_image(size, seed=number) // (1 + label), mpp=0.5)
        split = "train" if number < 4 else "val"
        rows.append({"slide_id": f"s{number}", "slide_path": f"s{number}.tif", "label": label, "split": split})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


def changed(bundle: distmil.Bundle, store: Store) -> set[str]:
    """Name the parts of the encoder whose weights are not those it started from."""
    start = encoder_state(prepare_encoder(bundle.config.encoder, store), store, trained=None)
    assert start is not None
    assert bundle.encoder_state is not None
    names = {name for name in start if not name.startswith("distmil.")}
    assert names <= bundle.encoder_state.keys()
    return {name for name in names if not torch.equal(start[name], bundle.encoder_state[name])}


def check_scores(home: Path, run: str, manifest: Path) -> None:
    """Compare the predictions with the last epoch's validation, and with the bundle in this process."""
    store, bundle = Store(str(home)), distmil.load_bundle(run, root=home)
    history = read_history(store, run)
    assert history is not None
    assert all(math.isfinite(value) for row in history.rows for name, value in row.items() if "loss" in name and value)
    table = pq.read_table(home / f"predictions/{run}/slides.parquet").to_pylist()
    right = [row["bag"] if row["label"] == "positive" else 1 - row["bag"] for row in table]
    loss = -np.log(right).mean()
    assert loss == pytest.approx(history.rows[-1]["val_slide_loss"], abs=2e-3)  # embeddings are kept in half precision
    for row in table:
        found = distmil.predict_slide(bundle, manifest.with_name(f"{row['slide_id']}.tif"), device="cpu")
        assert found.bag == row["bag"]


def given(manifest: Path, part: str) -> tuple[str, ...]:
    return (f"cohort.manifest={manifest}", *GIVEN, f"encoder.trainable={part}", f"training.run={part}")


@pytest.fixture(scope="module")
def home(manifest: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A run of each part."""
    home = tmp_path_factory.mktemp("home")
    for part in PARTS:
        done = run_here(home, "train", *given(manifest, part))
        assert done.code == 0, done.err
        assert (done.answer["epochs"], done.answer["slides"]) == (2, {"ok": 4})
    return home


def test_the_part_that_is_named_is_trained_and_the_rest_stays(home: Path) -> None:
    parts = {part: changed(distmil.load_bundle(part, root=home), Store(str(home))) for part in PARTS}
    blocks = {
        part: {name.split(".")[1] for name in names if name.startswith("blocks.")} for part, names in parts.items()
    }
    assert {name.split(".")[0] for name in parts["last"]} == {"blocks", "norm"}
    assert len(blocks["last"]) == 1
    if not IS_FULL:
        return
    assert len(blocks["all"]) == max(map(int, blocks["last"])) + 1 == len(blocks["lora"])
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in parts["lora"])
    assert parts["last"] < parts["all"]
    assert any(name.startswith("patch_embed") for name in parts["all"])


@pytest.mark.parametrize("part", PARTS)
def test_the_bundle_scores_as_validation_did(home: Path, manifest: Path, part: str) -> None:
    check_scores(home, part, manifest)


@pytest.mark.skipif(not IS_FULL, reason="a training is killed in test_faults.py; of an encoder: make test-all")
def test_kill_9_while_an_encoder_is_trained_then_the_same_command_goes_on(
    home: Path, manifest: Path, tmp_path: Path
) -> None:
    for folder in ("patches", "encoders", "labels"):
        shutil.copytree(home / folder, tmp_path / folder, copy_function=shutil.copy2)
    kill_job_when(tmp_path, (tmp_path / "checkpoints/lora/latest.json").exists, "train", *given(manifest, "lora"),
                  "training.use_gpu=false")  # fmt: skip
    assert not (tmp_path / "models/lora/commit.json").exists()
    done = run_here(tmp_path, "train", *given(manifest, "lora"))
    assert done.code == 0, done.err
    for file in ("encoder.safetensors", "model.safetensors"):
        assert (tmp_path / "models/lora" / file).read_bytes() == (home / "models/lora" / file).read_bytes()
