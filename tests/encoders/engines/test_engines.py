"""Engines: a network's embeddings in every precision, whatever the batch and the size of its patches."""

import numpy as np
import pytest
import torch
from torch import nn

from distmil.encoders.engines import EngineChoice, build_engine
from distmil.encoders.engines.gate import LEAST_COSINE, agreement
from distmil.encoders.engines.layers import fold_norms, keep_full, layers_in_order
from distmil.encoders.engines.openvino_engine import quantise
from tests.support.networks import TinyNetwork, patches
from tests.support.scale import cases

FORMS = [
    EngineChoice("torch", "fp32"),
    EngineChoice("torch", "bf16", full_layers=2),
    EngineChoice("openvino", "fp32"),
    EngineChoice("openvino", "bf16", full_layers=2),
]


def plain(network, images):
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("choice", FORMS, ids=lambda choice: choice.words)
def test_an_engine_gives_the_networks_embeddings_for_any_size_and_batch(choice):
    for seed in range(cases(4, full=60)):
        generator = np.random.default_rng(seed)
        network = TinyNetwork(seed)
        height, width = (int(edge) for edge in generator.integers(16, 70, 2))
        images = patches(int(generator.integers(1, 40)), height, width, seed=seed)
        engine = build_engine(network, choice, patch_px=height, device="cpu", model=None)
        expected = plain(network, images)
        together = engine.embed(images)
        batch = int(generator.integers(1, len(images) + 1))  # the last one is ragged
        apart = np.concatenate([engine.embed(images[at : at + batch]) for at in range(0, len(images), batch)])
        for found in (together, apart, engine.embed(images[:, ::-1])):
            assert (found.dtype, found.shape) == (np.float32, expected.shape)
        if choice.precision == "fp32":
            np.testing.assert_allclose(together, expected, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(apart, expected, rtol=1e-3, atol=1e-4)
        assert agreement(together, expected).low >= LEAST_COSINE
        assert agreement(apart, expected).low >= LEAST_COSINE
        assert engine.embed(images[:0]).shape == (0, expected.shape[1])


def test_a_quantised_engine_gives_nearly_the_networks_embeddings():
    network, images = TinyNetwork(0), patches(48, 32, 40, seed=0)
    model = quantise(network, images[:16])
    choice = EngineChoice("openvino", "int8", model_digest="any")
    engine = build_engine(network, choice, patch_px=32, device="cpu", model=model)
    expected = plain(network, images)
    for batch in (1, 7, 48):
        found = np.concatenate([engine.embed(images[at : at + batch]) for at in range(0, len(images), batch)])
        assert 0.99 < agreement(found, expected).least < 0.9999999  # and it is not the network itself
    assert engine.embed(images[:0]).shape == (0, expected.shape[1])
    with pytest.raises(ValueError, match="int8 needs the quantised model"):
        build_engine(network, choice, patch_px=32, device="cpu", model=None)


def test_bf16_rounds_less_the_more_layers_stay_full():
    network, images = TinyNetwork(2), patches(32, 32, 32, seed=2)
    expected = plain(network, images)
    for name in ("torch", "openvino"):
        errors = [
            1
            - agreement(
                build_engine(network, choice, patch_px=32, device="cpu", model=None).embed(images), expected
            ).mean
            for choice in (EngineChoice(name, "bf16", full_layers=count) for count in (0, 4))
        ]
        assert errors[1] < 0.8 * errors[0], name


# --- layers


def norms(module):
    return [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]


@pytest.mark.parametrize("seed", range(5))
def test_folded_norms_are_gone_and_change_nothing(seed):
    network, images = TinyNetwork(seed), torch.from_numpy(patches(3, 32, 24, seed=seed))
    folded = fold_norms(network, images[:1])
    assert len(norms(network)) == 3
    assert norms(folded) == []
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)


class Forked(nn.Module):
    """Its convolution feeds a norm and the sum beside it: folding would change both."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.norm.running_var.fill_(4.0)

    def forward(self, images):
        made = self.conv(images.permute(0, 3, 1, 2).float() / 255)
        return (self.norm(made) + made).mean((2, 3))


class Shared(nn.Module):
    """One convolution runs twice, with two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.two.running_var.fill_(9.0)

    def forward(self, images):
        return self.two(self.conv(self.one(self.conv(images.permute(0, 3, 1, 2).float() / 255)))).mean((2, 3))


@pytest.mark.parametrize("kind", [Forked, Shared])
def test_norms_that_cannot_be_folded_stay(kind):
    torch.manual_seed(0)
    network, images = kind().eval(), torch.from_numpy(patches(4, 20, 20, seed=0))
    folded = fold_norms(network, images[:1])
    assert len(norms(folded)) == len(norms(network))
    torch.testing.assert_close(folded(images), network(images))


def test_first_layers_stay_full_in_the_order_in_which_they_run():
    network, images = TinyNetwork(0), torch.from_numpy(patches(2, 32, 32, seed=0))
    layers = layers_in_order(network, images)
    assert [type(layer).__name__ for layer in layers] == ["Conv2d", "Conv2d", "Conv2d", "Linear"]
    assert layers[0] is network.stem
    seen = []
    keep_full(network, images, count=3)
    for layer in layers:
        layer.register_forward_hook(lambda _module, _given, output: seen.append(output.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(images)
    assert seen == [torch.float32] * 3 + [torch.bfloat16]
