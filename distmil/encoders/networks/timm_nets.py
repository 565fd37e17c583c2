"""timm's networks, by a row, a model's name, or the ``config.json`` of a folder or repository."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import timm
from torch import nn

from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.weights.states import State
from distmil.errors import ConfigError, EncoderError

_LAYERS = {
    "SwiGLUPacked": timm.layers.SwiGLUPacked,
    "SiLU": nn.SiLU,
    "LayerNorm1e-12": partial(nn.LayerNorm, eps=1e-12),
}


def build(row: EncoderRow) -> nn.Module:
    """Build a network. Raises: EncoderError if this timm has none of that name, or not with these arguments."""
    if not timm.is_model(row.arch):
        raise EncoderError(f"timm {timm.__version__} has no network {row.arch!r}{_near(row.arch)}")
    given = {key: _LAYERS.get(value, value) if isinstance(value, str) else value for key, value in row.args.items()}
    try:
        net: nn.Module = timm.create_model(row.arch, pretrained=False, **given)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise EncoderError(f"timm {timm.__version__} cannot build {row.arch}: {error}") from error
    return net


def resolve_name(row: EncoderRow) -> EncoderRow:
    """Complete the row of ``timm:MODEL`` by what timm knows of it. Raises: ConfigError if there is no such model."""
    arch, _, tag = row.arch.partition(".")
    if not timm.is_model(arch) or (tag and not timm.is_model_pretrained(row.arch)):
        raise ConfigError(f"encoder.name = {row.name!r}: timm {timm.__version__} has no such model{_near(row.arch)}")
    known = timm.get_pretrained_cfg(row.arch, allow_unregistered=True) or timm.get_pretrained_cfg(arch)
    return resolve(row, arch, {}, known.to_dict() if known else {})


def resolve(row: EncoderRow, arch: str, args: Mapping[str, Any], known: Mapping[str, Any]) -> EncoderRow:
    """Complete a row by an architecture, its arguments and its ``pretrained_cfg``.

    DINOv3's vision transformers give their class token, as their authors do, and not timm's average of the tokens.
    """
    pool = {"global_pool": "token"} if arch.startswith("vit_") and "dinov3" in arch else {}
    how = known.get("interpolation", "bicubic")
    found = replace(
        row,
        arch=arch,
        args={**pool, **args, "num_classes": 0},
        mean=tuple(known.get("mean", row.mean)),
        std=tuple(known.get("std", row.std)),
        interpolation=how if how in {"bicubic", "bilinear"} else "bicubic",
        input_px=int(known.get("input_size", (3, 224, 224))[-1]),
    )
    net = build(found)
    fixed = getattr(getattr(net, "patch_embed", None), "img_size", None)
    is_fixed = fixed is not None and not getattr(net, "dynamic_img_size", False)
    return replace(
        found,
        input_px=int(fixed[-1]) if is_fixed and fixed is not None else found.input_px,
        prefix_tokens=int(getattr(net, "num_prefix_tokens", 0)),
    )


def resolve_config(row: EncoderRow, config: Any, *, origin: str) -> EncoderRow:
    """Complete a row by the ``config.json`` of a folder or repository.

    Raises:
        EncoderError: If it does not describe a network of timm.
    """
    if not isinstance(config, Mapping) or not isinstance(arch := config.get("architecture"), str):
        kind = config.get("model_type") if isinstance(config, Mapping) else None
        hint = f" (it is of transformers' kind {kind})" if kind else ""
        raise EncoderError(
            f"{origin}: its config.json names no architecture of timm{hint}; a named encoder takes such weights by "
            "encoder.weights=/path/of/the/folder, for others bring a package with an entry point"
        )
    known = config.get("pretrained_cfg", config)
    return resolve(row, arch.partition(".")[0], config.get("model_args") or {}, known)


def download(row: EncoderRow, model: str) -> State:
    """Return the published weights of a model by timm's own ways. Raises: EncoderError if they cannot be had."""
    try:
        net = timm.create_model(model, pretrained=True, **row.args)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise EncoderError(
            f"cannot get the weights of {row.name} ({type(error).__name__}: {str(error).splitlines()[0]}). Ways out:\n"
            "  - download its repository on another machine and set encoder.weights to the folder;\n"
            "  - set encoder.name=efficientnet_lite0, whose weights came with the packages"
        ) from error
    return dict(net.state_dict())


def _near(name: str) -> str:
    """Word the names of timm that are near another one."""
    arch = name.partition(".")[0]
    known = timm.list_pretrained(f"{arch}.*") or timm.list_models()
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
