"""Encoders: the same weights are the same encoder wherever they come from, and no file runs code."""

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from distmil.config.data import EncoderConfig
from distmil.config.loading import build_config
from distmil.encoders.loading import load_state
from distmil.encoders.registry import (
    encoder_state,
    load_carried,
    load_encoder,
    load_trainable,
    prepare_encoder,
    stored_spec,
)
from distmil.encoders.weights.states import GOLDEN, state_digest
from distmil.errors import ConfigError, EncoderError, StorageError
from distmil.pipeline.job import Job, open_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights():
    """A ResNet18's state dict as torchvision names it, last layer included, with statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        state = torchvision.models.resnet18(weights=None).state_dict()
        for key, value in state.items():
            if key.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return state


def resnet(path):
    return EncoderConfig(name="resnet18", weights=str(path))


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def headless(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


FORMS = {
    "raw": lambda state: state,
    "without its last layer": headless,
    "another last layer": lambda state: headless(state) | {"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)},
    "a checkpoint": lambda state: {"epoch": 3, "state_dict": state},
    "of a parallel model": lambda state: prefixed(state, "module."),
    "a checkpoint of a parallel model": lambda state: {"model": prefixed(state, "module.backbone.")},
    "with a projection head": lambda state: state | {"projector.weight": torch.ones(4, 4)},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "in another order": lambda state: dict(reversed(state.items())),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_are_the_same_encoder(tmp_path, weights, form):
    torch.save(FORMS[form](weights), tmp_path / "weights.pt")
    save_file(weights, tmp_path / "weights.safetensors")
    state = load_state(resnet(tmp_path / "weights.pt"))
    assert state_digest(state) == state_digest(load_state(resnet(tmp_path / "weights.safetensors")))


def test_a_loaded_encoder_gives_what_torchvision_gives(tmp_path, weights, store):
    torch.save({"state_dict": prefixed(weights, "module.")}, tmp_path / "weights.pth")
    spec = prepare_encoder(resnet(tmp_path / "weights.pth"), store)
    encoder = load_encoder(spec, store)
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(weights)
    model.fc = torch.nn.Identity()
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = model.eval()(normalise(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255)).numpy()
    found = encoder.embed(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (4, spec.dimension)
    assert found.std() > 0.1


@pytest.mark.parametrize("name", ["texture", "resnet18"])
def test_an_embedding_does_not_depend_on_its_batch_mates(store, name):
    encoder = load_encoder(
        prepare_encoder(EncoderConfig(name=name, weights="none" if name == "texture" else "random"), store), store
    )
    together = encoder.embed(IMAGES)
    alone = np.concatenate([encoder.embed(IMAGES[i : i + 1]) for i in range(len(IMAGES))])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(encoder.embed(IMAGES), together, rtol=1e-6, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


@pytest.mark.parametrize(("name", "first"), [("resnet18", "conv1"), ("efficientnet_lite0", "conv_stem")])
def test_training_leaves_batch_statistics_alone(store, name, first):
    encoder = load_trainable(prepare_encoder(EncoderConfig(name=name, weights="random"), store), store)
    before = {key: value.clone() for key, value in encoder.net.named_buffers()}
    encoder.train()
    loss = encoder(torch.from_numpy(IMAGES)).square().mean()
    loss.backward()
    assert all(torch.equal(value, before[key]) for key, value in encoder.net.named_buffers())
    assert getattr(encoder.net, first).weight.grad.abs().max() > 0


def test_a_trained_encoder_is_published_with_its_own_golden_vector(store):
    spec = prepare_encoder(EncoderConfig(name="efficientnet_lite0"), store)
    trained = load_trainable(spec, store)
    with torch.no_grad():
        trained.net.conv_stem.weight.mul_(1.5)
    trained.train()
    carried = encoder_state(spec, store, trained=trained)
    kept = encoder_state(spec, store, trained=None)
    assert not torch.equal(carried[GOLDEN], kept[GOLDEN])
    found = load_carried(spec.name, carried).embed(IMAGES)  # compared with the trained one's answer
    np.testing.assert_allclose(found, trained.eval().embed(IMAGES), rtol=1e-5, atol=1e-6)
    for several in ("texture", "texture+efficientnet_lite0"):
        with pytest.raises(ValueError, match="has nothing to train"):
            load_trainable(stored_spec(several, "0" * 64), store)


# --- keeping


def test_weights_are_kept_once_and_are_then_needed_no_more(tmp_path, weights, store):
    path = tmp_path / "weights.pt"
    torch.save(weights, path)
    spec = prepare_encoder(resnet(path), store)
    kept = Path(store.path(spec.weights_file)).stat().st_mtime_ns
    assert prepare_encoder(resnet(path), store) == spec
    assert Path(store.path(spec.weights_file)).stat().st_mtime_ns == kept
    assert store.names("encoders") == [spec.weights_file.removeprefix("encoders/")]
    path.unlink()
    assert load_encoder(spec, store).embed(IMAGES[:1]).shape == (1, 512)


@pytest.mark.parametrize("place", [200, -5000])
def test_damaged_weights_are_refused_by_workers_and_written_again_by_the_next_job(tmp_path, weights, store, place):
    torch.save(weights, tmp_path / "weights.pt")
    spec = prepare_encoder(resnet(tmp_path / "weights.pt"), store)
    path = Path(store.path(spec.weights_file))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 64
    for content in (bytes(damaged), whole[:1000]):
        path.write_bytes(content)
        with pytest.raises(StorageError, match=r"resnet18-\w+\.safetensors is damaged: .* delete it and run the same"):
            load_encoder(spec, store)
        assert prepare_encoder(resnet(tmp_path / "weights.pt"), store) == spec
        assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(StorageError, match="is gone"):
        load_encoder(spec, store)


def test_other_weights_are_another_encoder(tmp_path, weights, store):
    torch.save(weights, tmp_path / "one.pt")
    changed = {key: value.clone() for key, value in weights.items()}
    changed["layer4.1.conv2.weight"][0, 0, 0, 0] += 1e-3
    torch.save(changed, tmp_path / "two.pt")
    one, two = (prepare_encoder(resnet(tmp_path / name), store) for name in ("one.pt", "two.pt"))
    assert one.identity() != two.identity()
    assert one.weights_file != two.weights_file


def test_weights_out_of_a_bundle_need_no_file(weights, store, tmp_path):
    torch.save(weights, tmp_path / "weights.pt")
    from_file = prepare_encoder(resnet(tmp_path / "weights.pt"), store)
    state = load_state(resnet(tmp_path / "weights.pt"))
    assert prepare_encoder(resnet("/gone/weights.pt"), store, state=state) == from_file


def test_random_weights_are_always_the_same_and_leave_other_draws_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    digests = {state_digest(load_state(EncoderConfig(name="resnet18", weights="random"))) for _ in range(2)}
    assert torch.equal(torch.rand(4), expected)
    assert len(digests) == 1


def test_the_texture_encoder_keeps_no_weights(store):
    spec = prepare_encoder(EncoderConfig(name="texture"), store)
    assert spec.weights_file is None
    assert load_encoder(spec, store).embed(IMAGES).shape == (4, spec.dimension)
    assert store.names("encoders") == []


# --- refusals


class Harmful:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, store, writer):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    content = {"state_dict": {}, "hook": Harmful(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(EncoderError, match=r"weights\.pt cannot be loaded as tensors only"):
        prepare_encoder(resnet(path), store)
    assert not trace.exists()
    assert store.names("encoders") == []


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "conv1.weight"}, ["1 of", "conv1.weight", "missing"]),
        (lambda state: state | {"conv1.weight": torch.ones(64, 1, 7, 7)}, ["1 have another shape", "conv1.weight"]),
        (lambda state: prefixed(state, "visual.trunk."), ["are missing", "torchvision"]),
        (lambda _: {}, ["are missing"]),
        (lambda _: {"a": 1}, ["no state dict"]),
        (lambda _: [torch.ones(3)], ["no state dict"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_starts(tmp_path, weights, store, change, parts):
    torch.save(change(weights), tmp_path / "odd.pt")
    with pytest.raises(EncoderError) as caught:
        prepare_encoder(resnet(tmp_path / "odd.pt"), store)
    for part in ["odd.pt", *parts]:
        assert part in str(caught.value)
    assert store.names("encoders") == []


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
@pytest.mark.parametrize("length", [0, 9, 5000])
def test_a_cut_off_file_is_refused(tmp_path, weights, store, name, length):
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(weights, path)
    else:
        save_file(weights, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(EncoderError, match=name):
        prepare_encoder(resnet(path), store)


def test_an_absent_file_and_an_unknown_name_are_bad_input(tmp_path, store):
    with pytest.raises(ConfigError, match=r"absent\.pt.*no such file"):
        prepare_encoder(resnet(tmp_path / "absent.pt"), store)
    with pytest.raises(ConfigError) as caught:
        prepare_encoder(resnet("IMAGENET"), store)
    for part in ("encoder.weights = 'IMAGENET'", "DEFAULT", "IMAGENET1K_V1", "random", ".safetensors"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "error", [URLError("no route"), OSError("reset"), RuntimeError('invalid hash value (expected "x")')]
)
def test_a_failed_download_names_the_ways_out(store, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(EncoderError) as caught:
        prepare_encoder(EncoderConfig(name="resnet50", weights="DEFAULT"), store)
    for part in ("resnet50", "IMAGENET1K_V2", "resnet50-11ad3fa6.pth", "checkpoints", "encoder.weights", "texture"):
        assert part in str(caught.value)


def test_downloaded_weights_are_taken_by_name(store, monkeypatch, weights, tmp_path):
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: weights)
    torch.save(weights, tmp_path / "weights.pt")
    assert prepare_encoder(resnet("IMAGENET1K_V1"), store) == prepare_encoder(resnet(tmp_path / "weights.pt"), store)


def test_random_weights_are_had_on_request_alone(store, monkeypatch):
    """A ResNet without a word on weights means the published ones, and says what to do where they cannot be had."""

    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(EncoderError, match="cannot download resnet18's weights IMAGENET1K_V1") as caught:
        prepare_encoder(EncoderConfig(name="resnet18"), store)
    assert "encoder.weights=random" in str(caught.value)
    with pytest.raises(ValueError, match=r"resnet18 is of no use without weights; expected auto, .* or random"):
        EncoderConfig(name="resnet18", weights="none")
    with pytest.raises(ConfigError, match="expected auto, DEFAULT, IMAGENET1K_V1, random"):
        prepare_encoder(EncoderConfig(name="resnet18", weights="nonsense"), store)


def test_jobs_say_aloud_that_weights_are_random(store, capsys):
    for encoder, is_said in (({"name": "resnet18", "weights": "random"}, True), ({}, False)):
        open_encoder(Job(build_config({"encoder": encoder}), store))
        assert ("resnet18 has RANDOM weights" in capsys.readouterr().err) is is_said


def test_names_of_weights_tell_no_folder():
    named = {("texture", "auto"): "none", ("texture", "none"): "none", ("resnet18", "auto"): "DEFAULT"}
    named |= {("resnet18", "random"): "random", ("resnet50", "/home/jane/w.pt"): "w.pt"}
    for (name, weights), expected in named.items():
        assert EncoderConfig(name=name, weights=weights).weights_name == expected
