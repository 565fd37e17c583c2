"""Which part of an encoder is trained: all of it, its last blocks, or low-rank additions to its linear layers.

D width of a layer's input, F of its output, R rank.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from distmil.config.data import EncoderConfig
from distmil.errors import EncoderError

_BLOCKS = (nn.Sequential, nn.ModuleList)


class LowRankLinear(nn.Linear):
    """A linear layer whose weight stays, plus the product of two thin matrices, which is 0 at first.

    Source: Hu et al. 2021 (LoRA), with the scale 1.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.down_RD = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.up_FR = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down_RD, a=math.sqrt(5))

    def forward(self, input_D: Tensor) -> Tensor:
        """Return outputs of width F."""
        return functional.linear(input_D, self.weight + self.up_FR @ self.down_RD, self.bias)


def set_trainable(encoder: nn.Module, config: EncoderConfig) -> None:
    """Leave gradients to the part of an encoder that ``encoder.trainable`` names.

    Raises:
        EncoderError: If the network has no such part, or cannot forget and compute again.
    """
    layers = layers_of(encoder)
    if config.trainable == "lora":
        encoder.requires_grad_(requires_grad=False)
        linear = [(parent, name, child) for layer in layers for parent in layer.modules()
                  for name, child in parent.named_children() if isinstance(child, nn.Linear)]  # fmt: skip
        if not linear:
            raise EncoderError(
                f"encoder.trainable = 'lora': {config.name} has no linear layers in its blocks; use last, or all"
            )
        for parent, name, child in linear:
            setattr(parent, name, LowRankLinear(child, config.lora_rank))
    elif config.trainable == "last":
        encoder.requires_grad_(requires_grad=False)
        for layer in layers[-_last(layers, config.trained_blocks) :]:
            layer.requires_grad_()
    if config.checkpointing:
        net: Any = getattr(encoder, "net", encoder)
        if not hasattr(net, "set_grad_checkpointing"):
            raise EncoderError(f"encoder.checkpointing: {config.name} cannot do that; leave it out")
        net.set_grad_checkpointing(True)


def layers_of(encoder: nn.Module) -> list[nn.Module]:
    """List an encoder's layers with parameters from its input to its output; a sequence of blocks is each of them."""
    net = getattr(encoder, "net", encoder)
    return [layer for layer in _unfolded(net) if any(True for _ in layer.parameters())]


def parameter_groups(encoder: nn.Module, config: EncoderConfig, *, rate: float) -> list[dict[str, Any]]:
    """Group the parameters that are trained by their rates; each layer's is ``layer_decay`` of the next one's."""
    layers = layers_of(encoder)
    depth = {id(p): depth for depth, layer in enumerate(reversed(layers)) for p in layer.parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in encoder.parameters():
        if parameter.requires_grad:  # what stands outside of the layers, as position embeddings do, is before them
            power = depth.get(id(parameter), len(layers))
            groups.setdefault(rate * config.layer_decay**power, []).append(parameter)
    return [{"params": parameters, "lr": lr} for lr, parameters in groups.items()]


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the low-rank additions in a network's state to its weights, which then have their usual names again."""
    plain = dict(state)
    for key in [key for key in state if key.endswith(".up_FR")]:
        layer = key.removesuffix("up_FR")
        plain[f"{layer}weight"] = plain[f"{layer}weight"] + plain.pop(key) @ plain.pop(f"{layer}down_RD")
    return plain


def _unfolded(net: nn.Module) -> Iterator[nn.Module]:
    for child in net.children():
        if isinstance(child, _BLOCKS) and len(child):
            yield from child
        else:
            yield child


def _last(layers: list[nn.Module], blocks: int) -> int:
    """Count the layers from the last ``blocks`` blocks to the end; a block is a layer made of layers to train."""
    places = [i for i, layer in enumerate(layers) if any(list(child.parameters()) for child in layer.children())]
    return len(layers) - places[-min(blocks, len(places))] if places else 1
