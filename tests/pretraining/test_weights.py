"""The folder that a pre-training leaves, as ``encoder.weights`` takes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distmil.config.data import EncoderConfig
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.registry import load_encoder, load_trainable, prepare_encoder
from distmil.encoders.weights.states import GOLDEN, decode_state, encode_state
from distmil.errors import ConfigError, EncoderError, StorageError
from distmil.pretraining.history import History
from distmil.pretraining.weights import save_weights, weights_folder
from distmil.storage.records import Part
from distmil.storage.store import RECORD_FILE, Committed, Store
from tests.support.networks import patches
from tests.support.s3_server import KEYS, s3_server

NAME = "timm:test_efficientnet"
HISTORY = History(losses=[2.5, 1 / 3], rows=[{"probe_auc": None, "spread": 1.0, "rank": 3.0}] * 2)


def make(store: Store, *, name: str = NAME) -> tuple[str, PatchEncoder]:
    """Save an encoder whose first weights moved a little, and return the folder."""
    spec = prepare_encoder(EncoderConfig(name=name, weights="random"), store)
    encoder = load_trainable(spec, store)
    assert isinstance(encoder, PatchEncoder)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    save_weights(store, "own", encoder.eval(), spec, HISTORY)
    return store.path(weights_folder("own")), encoder


def test_the_folder_is_the_encoder_under_its_own_digest(store: Store) -> None:
    folder, encoder = make(store)
    images = patches(3, 160, 160, seed=0)
    published = prepare_encoder(EncoderConfig(name=NAME, weights="random"), store)
    own = prepare_encoder(EncoderConfig(name=NAME, weights=folder), store)
    assert own.digest != published.digest
    assert np.allclose(load_encoder(own, store).embed(images), encoder.embed(images), atol=1e-6)
    local = prepare_encoder(EncoderConfig.model_validate({"name": f"local-dir:{folder}"}), store)
    assert np.allclose(load_encoder(local, store).embed(images), encoder.embed(images), atol=1e-6)


def test_one_of_several_encoders_takes_it_by_its_place(store: Store) -> None:
    folder, encoder = make(store)
    images, other = patches(2, 160, 160, seed=1), "timm:test_resnet"
    beside = EncoderConfig(name=f"texture+{NAME}", weights=folder)
    both = EncoderConfig(name=f"{other}+texture+{NAME}", weights=f"random+{folder}")
    digests = set()
    for config in (beside, both, EncoderConfig(name=both.name, weights="random")):
        spec = prepare_encoder(config, store)
        digests.add(spec.digest)
        found = load_encoder(spec, store).embed(images)[:, -256:]
        angle = (found * encoder.embed(images)).sum(1) / np.linalg.norm(found, axis=1)
        is_own = bool(np.allclose(angle, np.linalg.norm(encoder.embed(images), axis=1), rtol=1e-5))
        assert is_own == (config.weights != "random")
    assert len(digests) == 3


def test_the_history_lies_beside_the_weights(store: Store) -> None:
    folder, _ = make(store)
    assert (Path(folder) / "losses.csv").read_text() == f"step,loss\n1,2.5\n2,{1 / 3!r}\n"
    assert json.loads((Path(folder) / "history.json").read_text()) == HISTORY.to_json()


def test_a_machine_that_answers_otherwise_is_refused(store: Store) -> None:
    folder, _ = make(store)
    state = decode_state((Path(folder) / "model.safetensors").read_bytes())
    state[GOLDEN] = state[GOLDEN] * 1.1
    _write(
        store, {"model.safetensors": encode_state(state), "config.json": (Path(folder) / "config.json").read_bytes()}
    )
    with pytest.raises(EncoderError, match="answers otherwise here than when it was first loaded"):
        prepare_encoder(EncoderConfig(name=NAME, weights=folder), store)


def test_a_damaged_folder_and_one_without_a_record_are_refused(store: Store) -> None:
    folder, _ = make(store)
    data = bytearray((Path(folder) / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (Path(folder) / "model.safetensors").write_bytes(data)
    with pytest.raises(StorageError, match="is damaged: its checksum is not the committed one"):
        prepare_encoder(EncoderConfig(name=NAME, weights=folder), store)
    (Path(folder) / RECORD_FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"is no finished folder of `pretrain`: its commit.json is damaged or absent"):
        prepare_encoder(EncoderConfig(name=NAME, weights=folder), store)


def test_a_folder_on_an_object_store_is_taken_by_its_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("DISTMIL_CACHE", str(tmp_path / "cache"))
    here = Store(str(tmp_path / "here"))
    with s3_server(tmp_path / "log") as server:
        folder, encoder = make(Store(server.uri("runs")))
        config = EncoderConfig(name=NAME, weights=folder)
        assert (folder.partition(":")[0], config.weights_name) == ("s3", "own")
        found = load_encoder(prepare_encoder(config, here), here)
        images = patches(2, 160, 160, seed=0)
        assert np.allclose(found.embed(images), encoder.embed(images), atol=1e-6)
        with pytest.raises(ConfigError, match="is no finished folder of `pretrain`"):
            prepare_encoder(EncoderConfig(name=NAME, weights=server.uri("nothing")), here)


def test_another_encoder_does_not_take_it(store: Store) -> None:
    folder, _ = make(store)
    with pytest.raises(EncoderError, match="the folder own holds test_efficientnet; efficientnet_lite0 is tf_effic"):
        prepare_encoder(EncoderConfig(name="efficientnet_lite0", weights=folder), store)


def _write(store: Store, files: dict[str, Any]) -> None:
    folder = weights_folder("own")
    parts: list[Part] = [store.write_part(folder, name, data, rows=1) for name, data in files.items()]
    Committed(store, folder, "own").commit({}, parts=parts)
