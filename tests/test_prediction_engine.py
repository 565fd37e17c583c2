"""A slide scored in this process has the scores of the job, whatever engine the job's store has chosen."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import distmil
from distmil.api.engine import open_encoder
from distmil.bags.bag import BagEntry, open_source
from distmil.config.loading import build_config
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.engines import (
    EngineChoice,
    StoredEngine,
    load_engine,
    sample_patches,
    sampled_shards,
)
from distmil.encoders.registry import encoder_state, prepare_encoder
from distmil.errors import ConfigError, EncoderError
from distmil.inference.bundle import Bundle, save_bundle
from distmil.inference.scoring import BagScores, score_bag
from distmil.models.baselines import make_network
from distmil.storage.store import Store
from tests.support.tiles import make_slide, tile_slide

TILING = {"strategy": "crop", "patch_px": 64, "mpp": None, "encode": "png", "chunk_patches": 16}
BOTH_AUTO = {"engine": "auto", "precision": "auto"}


class Place:
    """A store with a bundle of an untrained head, and one slide."""

    def __init__(self, folder: Path, name: str = "texture+resnet18") -> None:
        weights = {} if name == "texture" else {"weights": "random"}
        self.values = {"tiling": TILING, "encoder": {"name": name, **weights},
                       "model": {"feature_dim": 16, "attention_dim": 8}}  # fmt: skip
        self.config = build_config(self.values)
        self.store = Store(str(folder / "store"))
        self.slide = make_slide(folder)
        self.spec = prepare_encoder(self.config.encoder, self.store)
        self.patches = tile_slide(self.slide, self.config.tiling, self.store)
        torch.manual_seed(0)
        head = make_network(self.config.model, embedding_dim=self.spec.dimension, num_classes=2).eval()
        state = encoder_state(self.spec, self.store, trained=None)
        save_bundle(self.store, Bundle("r", self.config, (head,), state))
        self.bundle = distmil.load_bundle("r", root=self.store.root)

    def stored(self, **asked: str) -> StoredEngine:
        encoder = {**self.values["encoder"], **asked}
        return StoredEngine(self.spec, build_config(self.values | {"encoder": encoder}), self.store)

    def keep(self, choice: EngineChoice, **asked: str) -> None:
        """Leave a choice in the store, as a job does."""
        engine = self.stored(**asked)
        self.store.write_checked(engine.name, {"choices": [asdict(choice)]}, owner=engine.name)

    def scores_of_job(self, **asked: str) -> BagScores:
        """Embed and score the slide as workers of the job do."""
        stored = self.stored(**asked)
        spec = replace(self.spec, engines=stored.read(device="cpu") or ())
        encoder = load_engine(spec, self.store, patch_px=TILING["patch_px"], device="cpu")
        embedder = SlideEmbedder(self.patches, stored.config, spec, self.store)
        parts = tuple(embedder.commit([embedder.write_shard(part, encoder) for part in self.patches.parts]).parts)
        entry = BagEntry(self.slide.slide_id, None, None, False, embedder.folder, parts, None)
        source, _ = open_source(self.store, entry)
        bags = self.bundle.config.bags
        return score_bag(
            self.bundle.heads,
            source,
            lambda embedding_TE: torch.tensor(embedding_TE).float(),
            top_k=bags.top_k,
            top_k_share=bags.top_k_share,
        )


def check_alike(place: Place, *, asked: dict[str, str], given: dict[str, str]) -> distmil.SlidePrediction:
    expected = place.scores_of_job(**asked)
    found = distmil.predict_slide(place.bundle, place.slide.path, device="cpu", **given)
    for name, values in (("attention", expected.attention_N), ("probability", expected.probability_N)):
        np.testing.assert_array_equal(found.patches[name].to_numpy(), values)
    assert (found.bag, found.max, found.topk_mean) == (expected.bag, expected.max, expected.topk_mean)
    return found


@pytest.mark.parametrize("choice", [
    EngineChoice("torch", "fp32", batch_size=5),
    EngineChoice("torch", "bf16", 2, batch_size=16),
    EngineChoice("openvino", "bf16", 1, batch_size=8),
])  # fmt: skip
def test_a_slide_has_the_scores_of_the_job_by_the_engine_that_was_chosen(tmp_path: Path, choice: EngineChoice) -> None:
    place = Place(tmp_path)
    place.keep(choice)
    found = check_alike(place, asked=BOTH_AUTO, given={})
    plain = distmil.predict_slide(place.bundle, place.slide.path, device="cpu", engine="torch", precision="fp32")
    assert choice.is_plain or not found.patches.equals(plain.patches)
    if choice.engine == "openvino":  # the place of another key is another choice
        place.keep(EngineChoice("torch", "bf16"), engine="torch", precision="bf16")
        asked = {"engine": "torch", "precision": "bf16"}
        check_alike(place, asked=asked, given=asked)


def test_a_quantised_engine_is_read_from_the_store_of_the_bundle(tmp_path: Path) -> None:
    place = Place(tmp_path, "resnet18")
    asked = {"engine": "openvino", "precision": "int8"}
    images = sample_patches(place.store, place.config, sampled_shards([place.patches]))
    place.stored(**asked).choose(images, device="cpu")
    check_alike(place, asked=asked, given=asked)


@pytest.mark.parametrize("name", ["texture", "texture+resnet18"])
def test_where_no_engine_was_chosen_torch_computes_in_fp32(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path, name)
    plain = {"engine": "torch", "precision": "fp32"}
    check_alike(place, asked=plain, given={})
    check_alike(place, asked=plain, given=plain)
    place.bundle.save(tmp_path / "alone")
    alone = distmil.load_bundle(tmp_path / "alone")
    assert (alone.home, place.bundle.home) == (None, place.store.root)
    found = distmil.predict_slide(alone, place.slide.path, device="cpu")
    assert found.row == distmil.predict_slide(place.bundle, place.slide.path, device="cpu", **plain).row


def test_an_engine_that_was_not_chosen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    with pytest.raises(EncoderError) as refused:
        open_encoder(place.bundle, engine="openvino", precision="auto", device="cpu")
    assert str(refused.value) == (
        f"engine = 'openvino', precision = 'auto': the bundle r has no such engine in {place.store.root}; run the job "
        "predict with encoder.engine=openvino encoder.precision=auto there, which compares it with fp32 first; or "
        "leave both out"
    )
    with pytest.raises(EncoderError, match="no such engine for it, as it lies in no storage root; run"):
        open_encoder(replace(place.bundle, home=None), engine="torch", precision="bf16", device="cpu")
    with pytest.raises(ConfigError, match=r"encoder\.engine = 'onnx'"):
        open_encoder(place.bundle, engine="onnx", precision="auto", device="cpu")
    place.keep(EngineChoice("openvino", "bf16"))
    before = set(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EncoderError, match=r"pip install 'distmil\[openvino\]'"):
        open_encoder(place.bundle, engine="auto", precision="auto", device="cpu")
    assert set(tmp_path.rglob("*")) == before
