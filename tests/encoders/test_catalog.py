"""The names of encoders, what they need of the patches, and that both are known without torch."""

import subprocess
import sys

import pytest

from distmil.__main__ import run
from distmil.config.loading import build_config
from distmil.encoders.catalog.names import check_name, width_of
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.catalog.rows import ROWS
from distmil.encoders.registry import stored_spec
from distmil.encoders.texture import DIMENSION
from distmil.errors import ConfigError
from distmil.inventory.listing import is_item


def tiling_of(name, **said):
    tiling = build_config({"encoder": {"name": name}, "tiling": said}).tiling
    return tiling.patch_px, tiling.mpp


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uni2-h", (224, 0.5)),
        ("prov-gigapath", (224, 0.5)),
        ("conch-v1.5", (512, 0.5)),
        ("dinov3-large", (256, 0.5)),
        ("texture", (224, 0.5)),
        ("texture+dinov3-small", (256, 0.5)),
        ("virchow2+uni", (224, 0.5)),
        ("timm:resnet18", (224, 0.5)),
    ],
)
def test_the_name_alone_sets_size_and_resolution_of_patches(name, expected):
    assert tiling_of(name) == expected
    config = build_config({"encoder": {"name": name}})
    assert config.explicit() == {"encoder.name": name}  # what follows is not said by the user
    assert build_config(config.model_dump()) == config


def test_what_is_said_and_fits_stays():
    assert tiling_of("virchow2", mpp=1.0) == (224, 1.0)
    assert tiling_of("virchow2", mpp=0.2505) == (224, 0.2505)  # within tiling.mpp_tolerance
    assert tiling_of("uni", mpp=None) == (224, None)
    assert tiling_of("efficientnet_lite0", patch_px=96) == (96, 0.5)
    assert tiling_of("dinov3-base", patch_px=96, mpp=1.0) == (96, 1.0)
    assert tiling_of("prov-gigapath", patch_px=256) == (256, 0.5)
    assert tiling_of("midnight", mpp_tolerance=0.5, mpp=0.35) == (224, 0.35)


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("uni2-h", {"patch_px": 256}, "tiling.patch_px = 256: uni2-h takes patches of 224 px; leave it out"),
        ("prov-gigapath", {"patch_px": 96}, "takes patches of 224 or 256 px"),
        ("uni2-h", {"mpp": 1.0}, "tiling.mpp = 1.0: uni2-h was made for 0.5 um/px; leave it out, or set null"),
        ("midnight", {"mpp": 4.0}, "midnight was made for 0.5 or 0.25 or 1 or 2 um/px"),
        ("efficientnet_lite0+uni", {"patch_px": 96}, "takes patches of 224 px"),
        ("uni+conch-v1.5", {}, "need patches of equal px: uni 224; conch-v1.5 512 or 448"),
    ],
)
def test_patches_that_do_not_fit_are_refused_with_those_that_do(name, said, message):
    with pytest.raises(ConfigError) as caught:
        tiling_of(name, **said)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("uni2h", ["'uni2h'", "did you mean uni2-h", "`distmil encoders` lists them", "timm:MODEL", "hf-hub:"]),
        ("UNI", ["did you mean uni"]),
        ("virchow_2", ["did you mean virchow2"]),
        ("EfficientNet-Lite0", ["did you mean efficientnet_lite0?"]),
        ("texture+gigapath", ["'gigapath'", "prov-gigapath"]),
        ("zzz", ["there is no such encoder. `distmil encoders`"]),
        ("texture+texture", ["each once"]),
        ("+".join(ROWS), ["8 encoders at most"]),
        ("hf-hub:owner", ["expected hf-hub:OWNER/NAME"]),
        ("timm:a/b", ["expected timm:MODEL"]),
        ("texture+", ["''"]),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, parts):
    with pytest.raises(ConfigError) as caught:
        build_config({"encoder": {"name": name}})
    for part in ["encoder.name = ", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "part"),
    [
        ({"name": "local-dir:/a/uni", "weights": "/b.pt"}, "local-dir: names the weights already"),
        (
            {"name": "texture+uni+resnet18", "weights": "/b.pt"},
            "expected auto, or the weights of uni, resnet18 in this order, such as auto+/path",
        ),
        ({"name": "texture+uni", "weights": "none"}, "texture+uni is of no use without weights"),
        ({"name": "texture+uni", "trainable": True}, "one encoder can be trained, not texture+uni side by side"),
        ({"name": "texture", "trainable": True}, "nothing to train; choose efficientnet_lite0 or resnet18"),
        ({"name": "uni", "weights": "none"}, "uni is of no use without weights"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(encoder, part):
    with pytest.raises(ConfigError) as caught:
        build_config({"encoder": encoder})
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "each", "shared"),
    [
        ("texture+uni", "/b/own", {"uni": "/b/own"}, "own"),
        ("uni+texture", "auto", {"uni": "auto"}, "DEFAULT"),
        ("texture+uni+resnet18", "auto", {"uni": "auto", "resnet18": "auto"}, "DEFAULT"),
        ("uni+texture+resnet18", "/a/x+DEFAULT", {"uni": "/a/x", "resnet18": "DEFAULT"}, "x+DEFAULT"),
        ("uni+resnet18", "/a/x+/b/x", {"uni": "/a/x", "resnet18": "/b/x"}, "x+x"),
        ("uni+resnet18", "random", {"uni": "random", "resnet18": "random"}, "random"),
        ("texture", "auto", {}, "none"),
    ],
)
def test_weights_are_those_of_each_encoder_that_has_some(name, weights, each, shared):
    found = build_config({"encoder": {"name": name, "weights": weights}}).encoder
    assert found.each_weights == each
    assert [found.only(row).weights for row in found.rows if row.has_weights] == list(each.values())
    assert found.weights_name == shared
    again = build_config({"encoder": {"name": name, "weights": shared}}).encoder  # as a bundle carries it
    assert (again.weights_name, again.each_weights.keys()) == (shared, each.keys())


def test_a_local_folder_is_shared_by_its_name_alone():
    config = build_config({"encoder": {"name": "local-dir:/home/jane/uni"}})
    shared = config.shareable()
    assert (shared["encoder.name"], shared["encoder.weights"]) == ("local-dir:uni", "uni")
    assert config.encoder.weights == "/home/jane/uni"
    assert "jane" not in stored_spec(config.encoder.name, "0" * 64).name
    assert build_config(config.model_dump()) == config


def test_every_row_is_whole():
    assert ROWS["texture"].width == DIMENSION
    for name, row in ROWS.items():
        assert name == row.name
        assert name == name.lower()
        assert "+" not in name
        assert row.width
        assert row.licence
        assert not row.patch_px or row.input_px
        assert row.input_px in {*row.patch_px, None}
        assert row.output == "forward" or row.prefix_tokens >= 1
        file = stored_spec(name, "0123456789abcdef" * 4).weights_file
        assert file is None if name == "texture" else is_item(file), file  # what the store's inventory knows
    assert width_of("texture+uni") == DIMENSION + 1024
    assert width_of("texture+timm:resnet18") is None


def test_a_row_in_weights_is_read_back_and_a_named_one_refused():
    row = EncoderRow("timm:a.b", "generic", arch="a", args={"x": (1, 2)}, mean=(0.1, 0.2, 0.3), input_px=96)
    assert EncoderRow.from_json(row.to_json()).to_json() == row.to_json()
    assert EncoderRow.from_json(row.to_json()).mean == row.mean
    for odd in ("[]", "3", '{"no": 1}', "{", ROWS["uni"].to_json()):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            EncoderRow.from_json(odd)


def test_names_are_checked_without_torch_and_timm():
    code = (
        "import sys; from distmil.config.loading import build_config;"
        "build_config({'encoder': {'name': 'texture+uni2-h'}});"
        "print({'torch', 'timm', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_names_are_single_or_several():
    assert [row.name for row in check_name("texture+efficientnet_lite0")] == ["texture", "efficientnet_lite0"]


def test_the_table_lists_every_encoder_at_once(capsys):
    assert run(["encoders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(ROWS)]] == list(ROWS)
    by_name = {line.split()[0]: line for line in lines if line}
    assert by_name["uni2-h"].split()[1:4] == ["224", "0.5", "1536"]
    for part in ("MahmoodLab/UNI2-h", " token ", "CC-BY-NC-ND-4.0"):
        assert part in by_name["uni2-h"]
    assert "224+" in by_name["efficientnet_lite0"]
    assert "code" in by_name["hibou-b"]
    assert " token " not in by_name["phikon"]
    assert lines[0].index("weights from") <= 100  # the last column may be long
