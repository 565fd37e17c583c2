"""Every encoder that can be built here gives what its authors' recipe gives, from a folder like its repository.

The recipes are written down here once more, from the tables of TRIDENT and slide2vec, and not read from the catalog.
"""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from distmil.config.data import EncoderConfig
from distmil.encoders.catalog import names
from distmil.encoders.catalog.rows import ROWS
from distmil.encoders.networks.building import build_net
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.registry import load_encoder, prepare_encoder
from tests.support.scale import IS_FULL

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

# Name: width, pixels, normalisation, and the first token of the image where class token and mean stand side by side.
TIMM = {
    "uni": (1024, 224, IMAGENET, None),
    "uni2-h": (1536, 224, IMAGENET, None),
    "virchow": (2560, 224, IMAGENET, 1),
    "virchow2": (2560, 224, IMAGENET, 5),
    "virchow2-cls": (1280, 224, IMAGENET, "cls"),
    "h-optimus-0": (1536, 224, BIOPTIMUS, None),
    "h-optimus-1": (1536, 224, BIOPTIMUS, None),
    "h0-mini": (1536, 224, BIOPTIMUS, 5),
    "h0-mini-cls": (768, 224, BIOPTIMUS, "cls"),
    "prov-gigapath": (1536, 224, IMAGENET, None),
    "gpfm": (1024, 224, IMAGENET, None),
    "kaiko-s8": (384, 224, HALF, None),
    "kaiko-s16": (384, 224, HALF, None),
    "kaiko-b8": (768, 224, HALF, None),
    "kaiko-b16": (768, 224, HALF, None),
    "kaiko-l14": (1024, 224, HALF, None),
    "lunit-s8": (384, 224, LUNIT, None),
    "dinov3-small": (384, 256, IMAGENET, "cls"),
    "dinov3-base": (768, 256, IMAGENET, "cls"),
    "dinov3-large": (1024, 256, IMAGENET, "cls"),
    "dinov3-huge-plus": (1280, 256, IMAGENET, "cls"),
    "dinov3-7b": (4096, 256, IMAGENET, "cls"),
    "dinov3-convnext-tiny": (768, 256, IMAGENET, None),
    "dinov3-convnext-small": (768, 256, IMAGENET, None),
    "dinov3-convnext-base": (1024, 256, IMAGENET, None),
    "dinov3-convnext-large": (1536, 256, IMAGENET, None),
}
MIDNIGHT = partial(
    transformers.Dinov2Config,
    hidden_size=1536,
    num_attention_heads=24,
    patch_size=14,
    image_size=224,
    use_swiglu_ffn=True,
)
# Name: width, class of transformers, its settings, normalisation, whether the mean of the image's tokens is added.
OF_TRANSFORMERS = {
    "phikon": (768, transformers.ViTModel, transformers.ViTConfig, IMAGENET, False),
    "phikon-v2": (
        1024, transformers.Dinov2Model,
        partial(transformers.Dinov2Config, hidden_size=1024, num_attention_heads=16, patch_size=16, image_size=224),
        IMAGENET, False,
    ),
    "midnight": (3072, transformers.Dinov2Model, MIDNIGHT, HALF, True),
    "midnight-cls": (1536, transformers.Dinov2Model, MIDNIGHT, HALF, False),
}  # fmt: skip
DEPTH = 2 if IS_FULL else 1


def shallow(row, monkeypatch):
    """Put a row of few blocks in the place of the catalog's; all widths, tokens and rules stay."""
    blocks = 1 if row.name == "dinov3-7b" else DEPTH  # 800 MB each
    depth = {"depths": (1, 1, 1, blocks)} if row.arch.startswith("convnext") else {"depth": blocks}
    few = replace(row, args={**row.args, **depth})
    monkeypatch.setattr(names, "ROWS", {**ROWS, row.name: few})
    return few


def scattered(net):
    """Give every weight a value of its own, so that none can be left out without a change."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.04 + (1.0 if value.ndim == 1 else 0.0))
    return net.eval()


def normalised(images, norm):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in norm)
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def patches(px):
    return np.random.default_rng(px).integers(0, 256, (2, px, px, 3), dtype=np.uint8)


def assert_equal_embeddings(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * max(1, expected.abs().max().item())
    assert (found[0] != found[1]).any()  # it does look at the images


@pytest.mark.parametrize("name", [name for name in TIMM if IS_FULL or name != "dinov3-7b"])
def test_a_folder_of_timms_weights_gives_timms_own_forward(tmp_path, monkeypatch, store, name):
    width, px, norm, tokens = TIMM[name]
    row = shallow(ROWS[name], monkeypatch)
    net = scattered(build_net(row))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": row.arch}))
    spec = prepare_encoder(EncoderConfig(name=name, weights=str(tmp_path)), store)
    images = patches(px)
    with torch.inference_mode():
        if tokens is None:
            expected = net(normalised(images, norm))
        else:
            out = net.forward_features(normalised(images, norm))
            expected = out[:, 0] if tokens == "cls" else torch.cat([out[:, 0], out[:, tokens:].mean(1)], -1)
    assert spec.dimension == width == expected.shape[1]
    assert_equal_embeddings(load_encoder(spec, store).embed(images), expected)


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_folder_of_transformers_weights_gives_transformers_own_answer(tmp_path, monkeypatch, store, name):
    width, kind, settings, norm, with_mean = OF_TRANSFORMERS[name]
    settings = settings(num_hidden_layers=DEPTH)
    shallow(ROWS[name], monkeypatch)
    net = scattered(kind(settings, **({"add_pooling_layer": False} if kind is transformers.ViTModel else {})))
    net.save_pretrained(tmp_path)
    spec = prepare_encoder(EncoderConfig(name=name, weights=str(tmp_path)), store)
    images = patches(224)
    with torch.inference_mode():
        out = net(pixel_values=normalised(images, norm)).last_hidden_state
    expected = torch.cat([out[:, 0], out[:, 1:].mean(1)], -1) if with_mean else out[:, 0]
    assert spec.dimension == width == expected.shape[1]
    assert_equal_embeddings(load_encoder(spec, store).embed(images), expected)


def test_every_row_of_timm_is_tried():
    built = {name for name, row in ROWS.items() if row.source == "timm"}
    assert built == set(TIMM) | set(OF_TRANSFORMERS)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_convolutional_networks_have_the_width_of_their_rows(name):
    with torch.device("meta"):
        net = build_net(ROWS[name]).eval()
        assert net(torch.zeros(1, 3, 224, 224)).shape == (1, ROWS[name].width)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("vit_tiny_patch16_224", {"img_size": 96, "reg_tokens": 2, "global_pool": "avg", "depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 112, "depth": 1}),
        ("vit_small_patch16_dinov3", {"depth": 1, "global_pool": "token"}),
        ("resnet18", {}),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_any_network_saved_by_timm_is_an_encoder_and_needs_its_folder_no_more(tmp_path, store, model, given):
    folder = tmp_path / "mine"
    net = scattered(timm.create_model(model, pretrained=False, num_classes=7, **given))
    timm.models.save_for_hf(net, folder, safe_serialization=True)
    spec = prepare_encoder(EncoderConfig(name=f"local-dir:{folder}"), store)
    assert spec.name == "local-dir:mine"  # the folder's path would tell the machine's
    own = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(own)
    images = patches(config["input_size"][-1])
    for path in folder.iterdir():
        path.unlink()
    with torch.inference_mode():
        expected = own(normalised(images, (config["mean"], config["std"])))
    assert spec.dimension == expected.shape[1]
    assert_equal_embeddings(load_encoder(spec, store).embed(images), expected)


def test_patches_of_another_size_are_resized_as_an_image_library_does():
    """Enlarged from 96 and reduced from 512 to 224 px within a grey level or two of PIL's bicubic filter."""
    row = replace(ROWS["efficientnet_lite0"], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    encoder = PatchEncoder(row, torch.nn.Flatten())
    for px in (96, 512):
        image = patches(px)[0] // 4 + 96  # PIL clips what overshoots after each of two passes
        resized = np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
        found = encoder.embed(image[None]).reshape(3, 224, 224).transpose(1, 2, 0)
        assert np.abs(found * 255 - resized).max() < 2


def test_a_tile_of_256_px_is_cut_to_the_centre_for_gigapath(monkeypatch, store):
    shallow(ROWS["prov-gigapath"], monkeypatch)
    config = EncoderConfig(name="prov-gigapath", weights="random")
    encoder = load_encoder(prepare_encoder(config, store), store)
    whole = patches(256)[:1]
    np.testing.assert_allclose(encoder.embed(whole), encoder.embed(whole[:, 16:240, 16:240]), rtol=1e-6, atol=1e-6)
