"""The engine of a store: chosen once, then the same for every worker and every later run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.encoders.embedder import SlideEmbedder, embeddings_folder
from distmil.encoders.engines import EngineChoice, StoredEngine, load_engine, runtime, sampled_shards, stored
from distmil.encoders.engines.gate import agreement
from distmil.encoders.engines.parts import networks_of, with_engines
from distmil.encoders.registry import EncoderSpec, TextureEncoder, load_encoder, prepare_encoder
from distmil.encoders.side_by_side import SideBySide
from distmil.errors import EncoderError, StorageError, UnreadableSlide
from distmil.pipeline.job import Job, open_encoder
from tests.support.networks import TinyNetwork
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

TILING = {"strategy": "crop", "patch_px": 32, "mpp": None, "encode": "png", "chunk_patches": 16}
SPEC = EncoderSpec("resnet18", "digest", 512, "encoders/some.safetensors")


def config_with(**encoder):
    return build_config({"tiling": TILING, "encoder": {"name": "resnet18", "weights": "random", **encoder}})


CONFIG = config_with()


@pytest.fixture
def records(tmp_path, store):
    slides = [
        Slide(name, str(save_pyramid(tmp_path / f"{name}.tif", tissue_image((300, 170), seed=i))))
        for i, name in enumerate(("a", "b", "c"))
    ]
    return [tile_slide(slide, CONFIG.tiling, store) for slide in slides]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_what_was_chosen_is_what_every_worker_loads(records, store, precision):
    config = config_with(engine="openvino", precision=precision)
    spec = prepare_encoder(config.encoder, store)
    engine = StoredEngine(spec, config, store)
    assert engine.read(device="cpu") is None
    choices = engine.choose(stored.sample_patches(store, config, sampled_shards(records)), device="cpu")
    assert [(choice.engine, choice.precision) for choice in choices] == [("openvino", precision)]
    assert StoredEngine(spec, config, store).read(device="cpu") == choices
    figures = json.loads(Path(store.path(engine.name)).read_text())["values"]
    assert figures["encoder"] == spec.identity()
    assert figures["figures"][0]["trials"][0]["agreement"]["low"] >= 0.999
    chosen = replace(spec, engines=choices)
    images = stored.sample_patches(store, config, sampled_shards(records))[:5]
    found = [load_engine(chosen, store, patch_px=32, device="cpu").embed(images) for _ in range(2)]
    np.testing.assert_array_equal(*found)
    assert agreement(found[0], load_encoder(spec, store).embed(images)).passes
    assert SlideEmbedder(records[0], config, chosen, store).batch_size == choices[0].batch_size
    fixed = config_with(batch_size=3)
    assert SlideEmbedder(records[0], fixed, chosen, store).batch_size == 3
    if precision == "int8":
        [file] = [name for name in store.names("engines") if name.endswith(".zip")]
        store.write(f"engines/{file}", b"damaged")
        with pytest.raises(StorageError, match=r"engines/\w+\.zip is damaged; delete the folder engines"):
            load_engine(chosen, store, patch_px=32, device="cpu")
        store.delete(f"engines/{file}")
        with pytest.raises(StorageError, match=r"is gone; delete the folder engines"):
            load_engine(chosen, store, patch_px=32, device="cpu")


def test_embeddings_get_another_folder_with_another_engine_alone():
    plain = embeddings_folder(CONFIG, SPEC)
    same = [EngineChoice("torch", "fp32"), EngineChoice("torch", "fp32", batch_size=7)]
    others = [
        EngineChoice("torch", "bf16"), EngineChoice("openvino", "fp32"), EngineChoice("openvino", "bf16"),
        EngineChoice("openvino", "bf16", full_layers=3), EngineChoice("openvino", "int8", model_digest="a"),
        EngineChoice("openvino", "int8", model_digest="b"),
    ]  # fmt: skip
    folders = [embeddings_folder(CONFIG, replace(SPEC, engines=(choice,))) for choice in (*same, *others)]
    assert folders[:2] == [plain, plain]
    assert len(set(folders)) == 1 + len(others)
    slow = replace(SPEC, engines=(EngineChoice("openvino", "fp32", batch_size=1),))
    assert embeddings_folder(CONFIG, slow) == folders[3]


def test_embeddings_of_before_there_were_engines_go_on_with_torch_in_fp32(store):
    engine = StoredEngine(SPEC, CONFIG, store)
    assert engine.read(device="cpu") is None
    store.write(f"{embeddings_folder(CONFIG, SPEC)}/a/commit.json", b"{}")
    assert engine.read(device="cpu") == ()
    assert StoredEngine(SPEC, config_with(engine="openvino"), store).read(device="cpu") is None


def test_a_trained_encoder_embeds_as_it_did_in_training(store):
    assert StoredEngine(SPEC, config_with(trainable=True), store).read(device="cpu") == ()
    assert StoredEngine(SPEC, config_with(trainable=True, precision="bf16"), store).read(device="cpu") is None


@pytest.mark.parametrize("asked", [{"engine": "openvino"}, {"precision": "int8"}])
def test_an_absent_library_is_found_before_anything_is_made(store, monkeypatch, asked):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(runtime.importlib, "import_module", absent)
    with pytest.raises(EncoderError, match=r"pip install 'distmil\[openvino\]', or set encoder\."):
        open_encoder(Job(config_with(**asked), store))
    assert store.names("encoders") == []


def test_nothing_is_chosen_where_there_is_nothing_to_choose(store):
    assert StoredEngine(SPEC, config_with(engine="torch", precision="fp32"), store).read(device="cpu") == ()
    assert StoredEngine(replace(SPEC, weights_file=None), CONFIG, store).read(device="cpu") == ()


def keep(store, choice):
    engine = StoredEngine(SPEC, CONFIG, store)
    store.write_checked(engine.name, {"choices": [stored.asdict(choice)]}, owner=engine.name)
    return engine


def test_a_stored_engine_that_is_not_installed_is_refused(store, monkeypatch):
    engine = keep(store, EngineChoice("openvino", "bf16"))
    assert engine.read(device="cuda") is None  # on a GPU it is chosen again

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(runtime.importlib, "import_module", absent)
    with pytest.raises(EncoderError, match=r"pip install 'distmil\[openvino\]'"):
        engine.read(device="cpu")
    assert keep(store, EngineChoice("torch", "bf16")).read(device="cuda") == (EngineChoice("torch", "bf16"),)


def test_a_damaged_choice_is_made_again(store):
    engine = keep(store, EngineChoice("torch", "bf16"))
    store.write(engine.name, b"{")
    assert engine.read(device="cpu") is None


def test_a_sample_is_of_many_slides_and_always_the_same(records, store):
    shards = sampled_shards(records)
    assert shards == sampled_shards(records[::-1])
    assert {record.name for record, _ in shards} == {"a", "b", "c"}
    images = stored.sample_patches(store, CONFIG, shards)
    np.testing.assert_array_equal(images, stored.sample_patches(store, CONFIG, shards))
    assert images.shape[1:] == (32, 32, 3)
    assert len(images) == min(stored.SAMPLE, sum(part.rows for _, part in shards))
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_a_slide_that_cannot_be_read_is_left_out_of_the_sample(records, store):
    def decode(record, table):
        if record.name != "b":
            raise UnreadableSlide("no")
        return np.full((len(table), 32, 32, 3), 7, np.uint8)

    shards = sampled_shards(records)
    images = stored.sample_patches(store, CONFIG, shards, decode=decode)
    assert 0 < len(images) <= 48
    assert (images == 7).all()
    others = [(record, part) for record, part in shards if record.name != "b"]
    assert stored.sample_patches(store, CONFIG, others, decode=decode).shape == (0, 32, 32, 3)


def test_each_network_gets_its_own_engine():
    network, texture = TinyNetwork(0), TextureEncoder()
    assert networks_of(network) == [network]
    assert networks_of(texture) == []
    engine = TextureEncoder()
    assert with_engines(network, [engine]) is engine
    assert with_engines(texture, []) is texture
    several = SideBySide((network, texture, TinyNetwork(1)), (1.0, 1.0, 1.0))
    assert networks_of(several) == [network, several.parts[2]]
    made = with_engines(several, [engine, other := TextureEncoder()])
    assert made.parts[0] is engine
    assert made.parts[1] is texture
    assert made.parts[2] is other
    assert made.units == several.units
