"""torchvision's ResNets, and their published weights by name."""

from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.weights.states import State
from distmil.errors import ConfigError, EncoderError


def build(row: EncoderRow) -> nn.Module:
    """Build a ResNet without its last layer."""
    net: Any = getattr(torchvision.models, row.arch)(weights=None)
    net.fc = nn.Identity()
    return net  # type: ignore[no-any-return]


def download(row: EncoderRow, weights_name: str, *, asked: str) -> State:
    """Return torchvision's published weights by name.

    Args:
        row: The encoder's.
        weights_name: Such as DEFAULT.
        asked: ``encoder.weights``, for the message.

    Raises:
        ConfigError: If there are no weights of that name.
        EncoderError: If they cannot be had.
    """
    choices = torchvision.models.get_model_weights(row.arch)
    names = ["DEFAULT", *(weight.name for weight in choices)]
    if weights_name not in names:
        raise ConfigError(
            f"encoder.weights = {asked!r}: expected auto, {', '.join(names)}, random, "
            "or a file ending in .safetensors, .pt or .pth"
        )
    weights = choices[weights_name]
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = weights.url.rpartition("/")[2]
        raise EncoderError(
            f"cannot download {row.name}'s weights {weights.name} ({error}). Ways out:\n"
            f"  - put the file {file} into {torch.hub.get_dir()}/checkpoints on this machine;\n"
            f"  - set encoder.weights to a local .safetensors or state-dict file;\n"
            f"  - set encoder.name=texture, which needs no weights, or efficientnet_lite0, which brings its own;\n"
            f"  - set encoder.weights=random to try things out: such embeddings mean nothing"
        ) from error
    return state
