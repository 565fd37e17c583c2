"""Between NumPy and torch: arrays as tensors without a copy, and numbers on their way to a device.

T patches, E embedding.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows: TypeAlias = Tensor | Sequence[Tensor]
"""T x E in one tensor, or in pieces as they lie in memory-mapped files, one after the other."""

_PAGE_BYTES = 4096


def on_device(values: NDArray[Any], device: torch.device | str) -> Tensor:
    """Copy numbers to a device, without waiting for it."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":  # from other memory a copy would wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def as_tensor_view(array: NDArray[Any]) -> Tensor:
    """View an array as a tensor of the same memory. Nobody may write to it if the array was read-only."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


class _Writable:
    """What NumPy takes for an array that may be written: torch has no read-only tensors, and warns."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # keeps the memory
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def touch(array: NDArray[Any]) -> None:
    """Read a byte of every page of a contiguous array, so that what is mapped from a file is in memory."""
    array.reshape(-1).view(np.uint8)[::_PAGE_BYTES].max(initial=0)


def num_rows(rows: Rows) -> int:
    """Return T."""
    return len(rows) if isinstance(rows, Tensor) else sum(len(piece) for piece in rows)


def in_one(rows: Rows) -> Tensor:
    """Return the rows in one tensor; pieces are copied."""
    if isinstance(rows, Tensor):
        return rows
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def widen(values: Tensor) -> Tensor:
    """Turn half-precision values into fp32; wider ones stay. Scores and losses are never computed in less."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values
