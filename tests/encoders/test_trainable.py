"""The part of an encoder that is trained, on small networks of every kind."""

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from distmil.config.data import EncoderConfig
from distmil.encoders.augmentation import augmented
from distmil.encoders.stains import shift_stains
from distmil.encoders.trainable import layers_of, merged, parameter_groups, set_trainable
from distmil.errors import EncoderError
from tests.support.scale import cases

DEPTH = 3


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=DEPTH, num_heads=2, num_classes=0
    )


def resnet() -> nn.Module:
    net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Identity()
    return net


def efficientnet() -> nn.Module:
    return timm.create_model("tf_efficientnet_lite0", num_classes=0)


NETS = {"vit": vit, "resnet": resnet, "efficientnet": efficientnet}


def config(**values) -> EncoderConfig:
    return EncoderConfig(name="resnet18", **values)


def trained_names(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def step(net: nn.Module, settings: EncoderConfig) -> None:
    """Take a step that moves all that may move."""
    optimizer = torch.optim.SGD(parameter_groups(net, settings, rate=0.5))
    net.eval()
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("kind", "blocks", "prefixes"),
    [
        ("vit", 1, ("blocks.2.", "norm.")),
        ("vit", 2, ("blocks.1.", "blocks.2.", "norm.")),
        ("resnet", 1, ("layer4.1.",)),
        ("efficientnet", 1, ("blocks.6.", "conv_head.", "bn2.")),
        ("efficientnet", 2, ("blocks.5.", "blocks.6.", "conv_head.", "bn2.")),
    ],
)
def test_the_last_blocks_alone_move(kind, blocks, prefixes):
    torch.manual_seed(0)
    net = NETS[kind]()
    before = copy.deepcopy(net.state_dict())
    set_trainable(net, config(trainable="last", trained_blocks=blocks))
    assert trained_names(net) == {name for name in dict(net.named_parameters()) if name.startswith(prefixes)}
    step(net, config(trainable="last"))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= trained_names(net)


def test_more_blocks_than_there_are_train_from_the_first_block_on():
    net = vit()
    set_trainable(net, config(trainable="last", trained_blocks=99))
    assert {name.split(".")[0] for name in trained_names(net)} == {"patch_embed", "blocks", "norm"}


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_additions_begin_at_nothing_and_end_in_the_weights(rank):
    torch.manual_seed(rank)
    plain, images = vit().eval(), torch.randn(4, 3, 32, 32)
    net = copy.deepcopy(plain)
    set_trainable(net, config(trainable="lora", lora_rank=rank))
    assert torch.equal(net(images), plain(images))
    for _ in range(2):  # the first step moves one factor, the second both
        step(net, config(trainable="lora"))
    assert {name.rpartition(".")[2] for name in trained_names(net)} == {"down_RD", "up_FR"}
    changed = net(images)
    assert not torch.allclose(changed, plain(images), atol=1e-3)
    again = vit().eval()
    again.load_state_dict(merged(net.state_dict()))
    torch.testing.assert_close(again(images), changed, atol=1e-5, rtol=1e-5)
    unmoved = {name: value for name, value in net.state_dict().items() if name in plain.state_dict()}
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in unmoved.items())


@pytest.mark.parametrize("kind", ["resnet", "efficientnet"])
def test_a_network_without_linear_layers_takes_no_low_rank_additions(kind):
    with pytest.raises(EncoderError, match="no linear layers in its blocks; use last, or all"):
        set_trainable(NETS[kind](), config(trainable="lora"))


@pytest.mark.parametrize("kind", NETS)
def test_rates_fall_from_the_last_layer_to_the_first_and_every_parameter_has_one(kind):
    net = NETS[kind]()
    groups = parameter_groups(net, config(layer_decay=0.5), rate=1.0)
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate_of) == len(list(net.parameters()))
    layers = layers_of(net)
    for depth, layer in enumerate(reversed(layers)):
        assert {rate_of[id(p)] for p in layer.parameters()} == {0.5**depth}
    if kind == "vit":
        assert rate_of[id(net.pos_embed)] == 0.5 ** len(layers)
    (one,) = parameter_groups(net, config(), rate=0.1)
    assert [id(p) for p in one["params"]] == [id(p) for p in net.parameters()]  # as earlier checkpoints have them


@pytest.mark.parametrize("kind", ["vit", "efficientnet"])
def test_gradients_are_the_same_where_less_is_kept(kind):
    torch.manual_seed(1)
    plain, images = NETS[kind](), torch.randn(2, 3, 32, 32)
    frugal = copy.deepcopy(plain)
    set_trainable(frugal, config(trainable=True, checkpointing=True))
    for net in (plain, frugal):
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        net(images).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_network_that_cannot_compute_again_says_so():
    with pytest.raises(EncoderError, match=r"encoder\.checkpointing: resnet18 cannot do that"):
        set_trainable(resnet(), config(trainable=True, checkpointing=True))


@pytest.mark.parametrize(("word", "value"), [("none", False), ("all", True), ("last", "last"), (True, True)])
def test_words_and_earlier_values_mean_the_same(word, value):
    assert config(trainable=word).trainable == value


@pytest.mark.parametrize("seed", range(cases(20, full=500)))
def test_an_augmented_patch_is_its_shifted_self_in_one_of_eight_positions(seed):
    rng = np.random.default_rng(seed)
    edge = int(rng.integers(8, 40))
    image = rng.integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    view, place = int(rng.integers(1, 9)), (int(rng.integers(10**5)), int(rng.integers(10**5)))
    spread = float(rng.uniform(0.01, 0.3))
    found = augmented(image, view=view, slide_id="s", place=place, spread=spread)
    assert np.array_equal(found, augmented(image, view=view, slide_id="s", place=place, spread=spread))
    generator = np.random.default_rng([view, 0x1B0ECF0B, *place])  # zlib.crc32(b"s")
    shifted = shift_stains(image, generator, spread=spread)
    positions = [turned for k in range(4) for turned in (np.rot90(shifted, k), np.rot90(shifted, k)[:, ::-1])]
    assert sum(np.array_equal(found, one) for one in positions) >= 1


def test_an_oblong_patch_keeps_its_shape():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    shapes = {augmented(image, view=v, slide_id="s", place=(0, v), spread=0.1).shape for v in range(1, 20)}
    assert shapes == {(8, 12, 3)}
