"""Weights under transformers' names to timm's, and those of the EfficientNet package.

A ``ViTModel`` and a ``Dinov2Model`` are the networks that timm has too; only the names and the split of the attention's
three matrices differ.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from distmil.encoders.weights.states import State
from distmil.errors import EncoderError

_COMMON = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_OF_BLOCK = {
    "vit": {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    },
    "dinov2": {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.weights_in": "mlp.fc1",
        "mlp.weights_out": "mlp.fc2",
    },
}
_UNUSED = ("pooler.", "classifier.", "embeddings.mask_token")
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias)?")
_TRIPLE = ("query", "key", "value")


def to_timm(state: Mapping[str, Tensor], *, family: str, origin: str) -> State:
    """Rename the weights of a transformers model, and join the attention's matrices.

    Args:
        state: Weights under the names of the published files.
        family: ``vit`` or ``dinov2``.
        origin: Where the weights come from, for the message.

    Raises:
        EncoderError: If a name is unknown, or one of an attention's three matrices is missing.
    """
    found: State = {}
    triples: dict[str, dict[str, Tensor]] = {}
    for full, value in state.items():
        key = re.sub(rf"^{family}\.", "", full)
        if key.startswith(_UNUSED):
            continue
        match = _BLOCK.fullmatch(key)
        stem, dot, ending = key.rpartition(".")
        if match:
            number, name, kind = match[1], match[2], match[3] or ""
            which = name.removeprefix("attention.attention.")
            if which in _TRIPLE:
                triples.setdefault(f"blocks.{number}.attn.qkv{kind}", {})[which] = value
                continue
            target = _OF_BLOCK[family].get(name)
            new = f"blocks.{number}.{target}{kind}" if target else None
        else:
            new = _COMMON.get(key) or (f"{_COMMON[stem]}{dot}{ending}" if stem in _COMMON else None)
        if new is None:
            raise EncoderError(f"{origin} does not fit: {full} is not a name of transformers' {family} models")
        found[new] = value
    for name, parts in triples.items():
        if len(parts) < len(_TRIPLE):
            raise EncoderError(f"{origin} does not fit: {name} has no {', '.join(sorted(set(_TRIPLE) - set(parts)))}")
        found[name] = torch.cat([parts[which] for which in _TRIPLE])
    return found


def in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, origin: str) -> State:
    """Give weights the names of another network of the same tensors in the same order; those left at the end are cut.

    Raises:
        EncoderError: If the shapes differ.
    """
    given = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    names = [key for key in wanted if not key.endswith("num_batches_tracked")]
    pairs = list(zip(names, given, strict=False))
    wrong = [name for name, value in pairs if value.shape != wanted[name].shape]
    if wrong or len(pairs) < len(names):
        raise EncoderError(f"{origin} does not fit: {len(given)} tensors for {len(names)}, {len(wrong)} of other shape")
    return dict(pairs)
