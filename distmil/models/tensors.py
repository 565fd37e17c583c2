"""Between NumPy and torch: arrays as tensors, and numbers on their way to a device."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(values: NDArray[Any], device: torch.device | str) -> Tensor:
    """Copy numbers to a device, without waiting for it."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":  # from other memory a copy would wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """View an array as a tensor; a read-only array, as from a mapped file, is copied, for torch knows none."""
    return torch.from_numpy(np.require(array, requirements="W"))


def widen(values: Tensor) -> Tensor:
    """Turn half-precision values into fp32; wider ones stay. Scores and losses are never computed in less."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values


def drop_by_bytes(values: Tensor, share: float) -> Tensor:
    """Set a share of values to 0, in steps of 1/256, and scale the others to keep the mean.

    From random bytes, eight to a draw, so that a seed drops the same values as in earlier versions on a CPU.
    """
    threshold = round(256 * share)
    draws = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    drawn = draws.integers(0, 2**64 - 1, size=-(-values.numel() // 8), dtype=np.uint64, endpoint=True)
    kept = drawn.view(np.uint8)[: values.numel()] >= threshold
    return values * torch.from_numpy(kept).view(values.shape) / (1 - threshold / 256)
