"""Torch as an engine: norms folded, channels last, inference mode; in fp32 or lower precision, compiled or not.

N patches, E embedding.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmil.encoders.engines.choice import EngineChoice
from distmil.encoders.engines.layers import fold_norms, keep_full

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """An encoder computed by torch."""

    def __init__(self, encoder: nn.Module, choice: EngineChoice, *, patch_px: int, device: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (1, patch_px, patch_px, 3), np.uint8)
        image_NHWC = torch.from_numpy(noise).to(device)
        net = fold_norms(encoder, image_NHWC)
        keep_full(net, image_NHWC, count=choice.full_layers)
        net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = torch.device(device)
        self._dtype = _DTYPES.get(choice.precision)
        self._is_compiled = choice.is_compiled
        self._batch_size = choice.batch_size
        self._net = torch.compile(net, dynamic=False) if self._is_compiled else net

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        count = len(images_NHWC)
        if count == 0:
            return self.embed(np.zeros((1, *images_NHWC.shape[1:]), np.uint8))[:0]
        if self._is_compiled and count % self._batch_size:  # compiled for one shape: fill the ragged batch
            short = self._batch_size - count % self._batch_size
            images_NHWC = np.concatenate([images_NHWC, np.zeros((short, *images_NHWC.shape[1:]), np.uint8)])
        step = self._batch_size if self._is_compiled else len(images_NHWC)
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            parts = [
                self._net(self._on_device(images_NHWC[start : start + step])).float().cpu().numpy()
                for start in range(0, len(images_NHWC), step)
            ]
        return np.asarray(np.concatenate(parts)[:count], np.float32)

    def _on_device(self, images_NHWC: NDArray[np.uint8]) -> Tensor:
        """Copy patches to the device; to a GPU through pinned memory, while it still computes."""
        images = torch.from_numpy(np.ascontiguousarray(images_NHWC))
        return images.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else images
