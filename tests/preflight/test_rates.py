"""Trials on patches of the cohort: what the first embedding will choose, and how long that takes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distmil.config.loading import build_config
from distmil.encoders.engines import StoredEngine
from distmil.encoders.registry import prepare_encoder
from distmil.preflight.rates import time_choice
from distmil.visualization.heatmap import encode_png


@pytest.fixture
def stored(store):
    encoder = {"name": "resnet18", "weights": "random", "engine": "torch", "precision": "bf16", "batch_size": 2}
    config = build_config({"tiling": {"patch_px": 32, "mpp": None}, "encoder": encoder})
    return StoredEngine(prepare_encoder(config.encoder, store), config, store)


def test_an_engine_is_chosen_on_trial_patches_as_a_job_would(tmp_path, stored):
    rng = np.random.default_rng(0)
    images = [encode_png(Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))) for _ in range(8)]
    pq.write_table(pa.table({"image": images}), tmp_path / "0.parquet")
    choices, seconds = time_choice([str(tmp_path / "0.parquet"), str(tmp_path / "gone")], stored, device="cpu")
    assert [(choice.engine, choice.precision) for choice in choices] == [("torch", "bf16")]
    assert choices == stored.read(device="cpu")
    assert seconds > 0


def test_without_trial_patches_nothing_is_chosen(tmp_path, stored):
    assert time_choice([str(tmp_path / "gone")], stored, device="cpu") == ((), 0.0)
