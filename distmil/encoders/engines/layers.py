"""A network's layers in the order in which they run: batch norms folded into convolutions, the first kept in fp32."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

LAYERS = (nn.Conv2d, nn.Linear)


def fold_norms(encoder: nn.Module, image_NHWC: Tensor) -> nn.Module:
    """Copy an encoder in evaluation mode, with each batch norm folded into the convolution whose output it takes.

    Which convolution feeds which norm is seen while one image passes, so that any network's own code stays as it is.
    Were a convolution's output used elsewhere too, the folded network would give something else: then none is folded.

    Args:
        encoder: An encoder in evaluation mode, see ``distmil.encoders.registry``.
        image_NHWC: One image, uint8.
    """
    folded = _folded(encoder, image_NHWC)
    with torch.inference_mode():
        is_equal = torch.allclose(folded(image_NHWC), encoder(image_NHWC), rtol=1e-2, atol=1e-3)
    return folded if is_equal else copy.deepcopy(encoder)


def _folded(encoder: nn.Module, image_NHWC: Tensor) -> nn.Module:
    copied = copy.deepcopy(encoder)
    for conv, norm in _fed_norms(copied, image_NHWC):
        names = {module: name for name, module in copied.named_modules()}
        copied.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]  # timm's norms have both
        copied.set_submodule(names[norm], nn.Sequential(*rest))
    return copied


def _fed_norms(encoder: nn.Module, image_NHWC: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Find each convolution that runs once and whose output a batch norm takes."""
    made: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def watch(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made.append((output, module))
        elif isinstance(module, nn.BatchNorm2d):
            pairs.extend((conv, module) for tensor, conv in made if tensor is given[0])

    with _watched(encoder, (nn.Conv2d, nn.BatchNorm2d), watch), torch.inference_mode():
        encoder(image_NHWC)
    convs, norms = [conv for _, conv in made], [norm for _, norm in pairs]
    return [(conv, norm) for conv, norm in pairs if convs.count(conv) == 1 and norms.count(norm) == 1]


def layers_in_order(encoder: nn.Module, image_NHWC: Tensor) -> list[nn.Module]:
    """Return the convolutions and linear layers in the order in which an image meets them."""
    met: dict[nn.Module, None] = {}
    with _watched(encoder, LAYERS, lambda module, *_: met.setdefault(module)), torch.inference_mode():
        encoder(image_NHWC)
    return list(met)


def keep_full(encoder: nn.Module, image_NHWC: Tensor, *, count: int) -> None:
    """Let the first ``count`` layers of an encoder compute in fp32 where autocast lowers the rest."""
    names = {module: name for name, module in encoder.named_modules()}
    for layer in layers_in_order(encoder, image_NHWC)[:count]:
        encoder.set_submodule(names[layer], _Full(layer))


class _Full(nn.Module):
    """A layer that autocast leaves alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, feature: Tensor) -> Tensor:
        with torch.autocast(feature.device.type, enabled=False):
            found: Tensor = self.layer(feature.float())
        return found


@contextmanager
def _watched(encoder: nn.Module, kinds: tuple[type[nn.Module], ...], watch: Callable[..., Any]) -> Iterator[None]:
    """Call ``watch`` after each forward of a module of some kinds."""
    handles = [module.register_forward_hook(watch) for module in encoder.modules() if isinstance(module, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
