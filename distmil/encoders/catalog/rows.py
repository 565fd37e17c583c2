"""The table of named encoders.

Creation, transform and output follow the authors' model cards as TRIDENT's ``patch_encoder_models/load.py`` and
slide2vec's ``encoders/models`` have them. Whether a licence fits a use is for its own text to say.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from distmil.encoders.catalog.row import HALF, EncoderRow

_NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
_SEE_PAGE = "see its page"
_MPP = (0.5,)
_ALL_MPP = (0.5, 0.25, 1.0, 2.0)
_PATHOLOGY: dict[str, Any] = {"source": "timm", "input_px": 224, "patch_px": (224,), "mpp": _MPP}
_NATURAL: dict[str, Any] = {"input_px": 256, "patch_px": (256,), "is_resizable": True}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_VIT = {"num_classes": 0, "img_size": 224}

_UNI = EncoderRow(
    "uni", width=1024, arch="vit_large_patch16_224", hub="MahmoodLab/UNI", precision="fp16",
    args={**_VIT, "init_values": 1e-5, "dynamic_img_size": True}, licence=_NON_COMMERCIAL, is_gated=True, **_PATHOLOGY,
)  # fmt: skip
_UNI2 = EncoderRow(
    "uni2-h", width=1536, arch="vit_giant_patch14_224", hub="MahmoodLab/UNI2-h", precision="bf16",
    args={
        **_VIT, **_SWIGLU, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True,
    },
    prefix_tokens=9, licence=_NON_COMMERCIAL, is_gated=True, **_PATHOLOGY,
)  # fmt: skip
_VIRCHOW = EncoderRow(
    "virchow", width=2560, arch="vit_huge_patch14_224", hub="paige-ai/Virchow", precision="fp16",
    args={
        **_VIT, **_SWIGLU, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True,
    },
    output="cls+mean", licence="Apache-2.0", is_gated=True, **_PATHOLOGY,
)  # fmt: skip
_VIRCHOW2 = replace(
    _VIRCHOW, name="virchow2", hub="paige-ai/Virchow2", args={**_VIRCHOW.args, "reg_tokens": 4}, prefix_tokens=5,
    mpp=_ALL_MPP, licence=_NON_COMMERCIAL,
)  # fmt: skip
_H_OPTIMUS = EncoderRow(
    "h-optimus-0", width=1536, arch="vit_giant_patch14_reg4_dinov2", hub="bioptimus/H-optimus-0", precision="fp16",
    args={**_VIT, "init_values": 1e-5, "dynamic_img_size": False, "global_pool": "token"}, prefix_tokens=5,
    mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517), licence="Apache-2.0", is_gated=True,
    **_PATHOLOGY,
)  # fmt: skip
_H0_MINI = replace(
    _H_OPTIMUS, name="h0-mini", width=1536, arch="vit_base_patch14_reg4_dinov2", hub="bioptimus/H0-mini",
    args={**_VIT, **_SWIGLU, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "global_pool": "",
          "dynamic_img_size": True},
    output="cls+mean", licence=_NON_COMMERCIAL,
)  # fmt: skip
_GIGAPATH = EncoderRow(
    "prov-gigapath", width=1536, arch="vit_giant_patch14_dinov2", hub="prov-gigapath/prov-gigapath", precision="fp16",
    args={**_VIT, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "global_pool": "token"},
    crop_px=256, licence="Apache-2.0", is_gated=True, **{**_PATHOLOGY, "patch_px": (224, 256)},
)  # fmt: skip
_PHIKON = EncoderRow(
    "phikon", width=768, arch="vit_base_patch16_224", hub="owkin/phikon", keys="vit", output="cls",
    args={**_VIT, "norm_layer": "LayerNorm1e-12"}, licence="Owkin non-commercial", **_PATHOLOGY,
)  # fmt: skip
_PHIKON2 = EncoderRow(
    "phikon-v2", width=1024, arch="vit_large_patch16_224", hub="owkin/phikon-v2", keys="dinov2", output="cls",
    args={**_VIT, "init_values": 1.0}, licence="Owkin non-commercial", **_PATHOLOGY,
)  # fmt: skip
_MIDNIGHT = EncoderRow(
    "midnight", width=3072, arch="vit_giant_patch14_dinov2", hub="kaiko-ai/midnight", keys="dinov2", output="cls+mean",
    args={**_VIT, "init_values": 1.0}, mean=HALF, std=HALF, precision="fp16", licence="MIT",
    **{**_PATHOLOGY, "mpp": _ALL_MPP},
)  # fmt: skip
_GPFM = EncoderRow(
    "gpfm", width=1024, arch="vit_large_patch14_dinov2", hub="majiabo/GPFM", file="GPFM.pth",
    args={**_VIT, "init_values": 1e-5, "dynamic_img_size": True}, licence=_SEE_PAGE, **_PATHOLOGY,
)  # fmt: skip
_CONCH15 = EncoderRow(
    "conch-v1.5", width=768, hub="MahmoodLab/TITAN", precision="fp16", licence=_NON_COMMERCIAL, is_gated=True,
    **{**_PATHOLOGY, "source": "remote", "input_px": 448, "patch_px": (512, 448)},
)  # fmt: skip


def _kaiko(name: str, width: int, arch: str, hub: str, **more: Any) -> EncoderRow:
    return EncoderRow(
        f"kaiko-{name}", width=width, arch=arch, hub=f"1aurent/{hub}.kaiko_ai_towards_large_pathology_fms",
        mean=HALF, std=HALF, licence=_SEE_PAGE,
        args={"num_classes": 0, "dynamic_img_size": True, "img_size": 224, **more}, **{**_PATHOLOGY, "mpp": ()},
    )  # fmt: skip


def _hibou(name: str, width: int) -> EncoderRow:
    return EncoderRow(
        f"hibou-{name.lower()}", width=width, hub=f"histai/hibou-{name}", output="pooler", prefix_tokens=5,
        mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816), licence="Apache-2.0", is_gated=name == "L",
        **{**_PATHOLOGY, "source": "remote"},
    )  # fmt: skip


def _dinov3(name: str, width: int) -> EncoderRow:
    """Describe a vision transformer of DINOv3; timm pools its tokens by average unless it is told otherwise."""
    arch = f"vit_{name}_patch16_dinov3"
    return EncoderRow(
        f"dinov3-{name.replace('_', '-')}", "timm", width=width, arch=arch, hub=f"timm/{arch}.lvd1689m", **_NATURAL,
        args={"num_classes": 0, "global_pool": "token"}, prefix_tokens=5, licence="DINOv3",
    )  # fmt: skip


def _dinov3_convnext(name: str, width: int) -> EncoderRow:
    arch = f"convnext_{name}"
    return EncoderRow(
        f"dinov3-convnext-{name}", "timm", width=width, arch=arch, hub=f"timm/{arch}.dinov3_lvd1689m", **_NATURAL,
        args={"num_classes": 0}, prefix_tokens=0, licence="DINOv3",
    )  # fmt: skip


_TABLE = (
    EncoderRow("texture", "texture", width=561, licence="Apache-2.0"),
    EncoderRow(
        "efficientnet_lite0", "package", width=1280, arch="tf_efficientnet_lite0", args={"num_classes": 0},
        input_px=224, patch_px=(224,), is_resizable=True, mean=HALF, std=HALF, prefix_tokens=0, licence="Apache-2.0",
    ),
    EncoderRow("resnet18", "torchvision", width=512, arch="resnet18", prefix_tokens=0, licence="BSD-3-Clause"),
    EncoderRow("resnet50", "torchvision", width=2048, arch="resnet50", prefix_tokens=0, licence="BSD-3-Clause"),
    _UNI,
    _UNI2,
    _VIRCHOW,
    _VIRCHOW2,
    replace(_VIRCHOW2, name="virchow2-cls", output="cls", width=1280),
    _H_OPTIMUS,
    replace(_H_OPTIMUS, name="h-optimus-1", hub="bioptimus/H-optimus-1", licence=_NON_COMMERCIAL),
    _H0_MINI,
    replace(_H0_MINI, name="h0-mini-cls", output="cls", width=768),
    _GIGAPATH,
    _PHIKON,
    _PHIKON2,
    _MIDNIGHT,
    replace(_MIDNIGHT, name="midnight-cls", output="cls", width=1536),
    _GPFM,
    _kaiko("s8", 384, "vit_small_patch8_224", "vit_small_patch8_224"),
    _kaiko("s16", 384, "vit_small_patch16_224", "vit_small_patch16_224"),
    _kaiko("b8", 768, "vit_base_patch8_224", "vit_base_patch8_224"),
    _kaiko("b16", 768, "vit_base_patch16_224", "vit_base_patch16_224"),
    _kaiko("l14", 1024, "vit_large_patch14_reg4_dinov2", "vit_large_patch14_reg4_224", img_size=518),
    EncoderRow(
        "lunit-s8", width=384, arch="vit_small_patch8_224", hub="1aurent/vit_small_patch8_224.lunit_dino",
        args={"num_classes": 0, "img_size": 224, "dynamic_img_size": True}, mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464), licence="Lunit non-commercial", **_PATHOLOGY,
    ),
    _hibou("b", 768),
    _hibou("L", 1024),
    _CONCH15,
    _dinov3("small", 384),
    _dinov3("base", 768),
    _dinov3("large", 1024),
    _dinov3("huge_plus", 1280),
    _dinov3("7b", 4096),
    _dinov3_convnext("tiny", 768),
    _dinov3_convnext("small", 768),
    _dinov3_convnext("base", 1024),
    _dinov3_convnext("large", 1536),
)  # fmt: skip
ROWS: Mapping[str, EncoderRow] = MappingProxyType({row.name: row for row in _TABLE})
"""The named encoders by name, as ``distmil encoders`` lists them."""
