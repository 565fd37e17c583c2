"""Bundles: what they carry, what they refuse, and how a job's own keys meet theirs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distmil.bundles import Bundle, load_bundle, save_bundle, with_bundle
from distmil.config import Config
from distmil.configfile import build_config, per_job_keys
from distmil.errors import BundleError, ConfigError
from distmil.models.dual import DualNetwork
from distmil.storage import Store


def make_bundle(**encoder: str) -> Bundle:
    values = {
        "cohort": {"classes": ["normal", "tumour", "stroma"]},
        "tiling": {"patch_px": 96, "mpp": 1.0},
        "model": {"feature_dim": 8, "attention_dim": 4},
        "encoder": encoder,
    }
    config = build_config(values)
    torch.manual_seed(0)
    head = DualNetwork(config.model, embedding_dim=5, num_classes=3).eval()
    state = {"conv1.weight": torch.ones(2, 3)} if encoder else None
    return Bundle("run", config, head, state, patch_threshold=0.3, metrics={"val": {"slide_auc": None}})


def test_a_bundle_comes_back_as_it_was(store: Store) -> None:
    bundle = make_bundle()
    digest = save_bundle(store, bundle).digest
    for place in ("run", store.path("models/run")):
        found = load_bundle(place, store)
        assert found.classes == ["normal", "tumour", "stroma"]
        assert (found.patch_threshold, found.slide_threshold, found.digest) == (0.3, 0.5, digest)
        assert found.config.tiling == bundle.config.tiling
        z = torch.randn(4, 5)
        for one, other in zip(found.head(z), bundle.head(z), strict=True):
            assert torch.equal(one, other)


def test_an_encoder_travels_without_its_path(store: Store) -> None:
    bundle = make_bundle(name="resnet18", weights="/home/someone/secret/weights.pth")
    save_bundle(store, bundle)
    assert b"someone" not in b"".join(path.read_bytes() for path in Path(store.path("models/run")).iterdir())
    found = load_bundle("run", store)
    assert found.encoder_state is not None
    assert torch.equal(found.encoder_state["conv1.weight"], torch.ones(2, 3))
    same = build_config({"encoder": {"name": "resnet18", "weights": "/elsewhere/weights.pth"}})
    assert with_bundle(same, found, per_job=per_job_keys()).encoder.weights == "weights.pth"


@pytest.mark.parametrize("damage", ["no record", "cut weights", "other version", "no config"])
def test_a_bundle_that_is_not_whole_is_refused(store: Store, damage: str) -> None:
    save_bundle(store, make_bundle())
    folder = Path(store.path("models/run"))
    if damage == "no record":
        (folder / "commit.json").unlink()
    elif damage == "cut weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-3])
    elif damage == "other version":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"format_version": 1', '"format_version": 99'))
    else:
        (folder / "config.json").unlink()
    with pytest.raises(BundleError, match="models/run"):
        load_bundle("run", store)


def test_a_bundle_that_is_not_there_is_said(store: Store) -> None:
    with pytest.raises(BundleError, match=r"prediction\.model = 'gone': there is no such folder, nor a run"):
        load_bundle("gone", store)


def test_the_bundles_keys_hold_and_the_jobs_own_stay(store: Store) -> None:
    bundle = make_bundle()
    own = build_config({"tiling": {"default_mpp": 0.25, "patch_px": 96}, "prediction": {"map_px": 300}})
    merged = with_bundle(own, bundle, per_job=per_job_keys())
    assert (merged.tiling.patch_px, merged.tiling.mpp, merged.tiling.default_mpp) == (96, 1.0, 0.25)
    assert merged.cohort.classes == bundle.classes
    assert merged.prediction.map_px == 300
    assert with_bundle(Config(), bundle, per_job=per_job_keys()).model == bundle.config.model


def test_every_clash_is_named(store: Store) -> None:
    own = build_config({"tiling": {"mpp": 0.5}, "model": {"feature_dim": 9}})
    with pytest.raises(ConfigError) as error:
        with_bundle(own, replace(make_bundle(), run="old"), per_job=per_job_keys())
    assert "tiling.mpp = 0.5: the bundle old was trained with 1.0" in str(error.value)
    assert "model.feature_dim = 9" in str(error.value)
