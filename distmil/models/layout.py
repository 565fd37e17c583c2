"""Where the patches of packed bags lie, and which of them are a bag's K patches of highest attention.

T patches of all bags, N patches of one bag, B bags, K top patches of all bags.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmil.config.learning import BagsConfig
from distmil.models.tensors import on_device

DEFAULT_SHARE: float = BagsConfig().top_k_share
_ROUNDING = 1e-6  # 0.1 x 30 is a little more than 3 in floating point


@dataclass(frozen=True)
class TopK:
    """Where the top-K patches of packed bags are among all patches ordered by bag and attention."""

    place_K: Tensor
    bag_K: Tensor
    """The bag of each."""


@dataclass(frozen=True)
class BagLayout:
    """Where the patches of packed bags lie. Made on the host: no step waits for the device to read lengths."""

    lengths: tuple[int, ...]
    bag_T: Tensor
    """The bag of every patch."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "BagLayout":
        """Lay out bags of these lengths. Raises: ValueError if a bag is empty."""
        if any(length < 1 for length in lengths):
            raise ValueError("every bag needs at least one patch")
        return cls(tuple(lengths), on_device(np.repeat(np.arange(len(lengths)), lengths), device))

    def top_k(self, top_k: int, *, share: float = DEFAULT_SHARE, num_bags: int | None = None) -> TopK:
        """Lay out the top-K patches of the first bags, or of all; see ``top_k_sizes``."""
        length_B = np.array(self.lengths[:num_bags], np.int64)
        size_B = top_k_sizes(torch.from_numpy(length_B), top_k, share=share).numpy()
        bag_K = np.repeat(np.arange(len(length_B)), size_B)
        rank_K = np.arange(len(bag_K)) - np.repeat(size_B.cumsum() - size_B, size_B)
        place_K = np.repeat(length_B.cumsum() - length_B, size_B) + rank_K
        return TopK(on_device(place_K, self.bag_T.device), on_device(bag_K, self.bag_T.device))


def top_k_sizes(length_B: Tensor, top_k: int, *, share: float) -> Tensor:
    """Choose K for each bag: at most ``top_k``, at most the share of the bag rounded up, and at least 1.

    Args:
        length_B: Patches of each bag, int64.
        top_k: Largest K.
        share: Largest K as a share of the bag, above 0.
    """
    return (share * length_B.double() - _ROUNDING).ceil().clamp(1, top_k).long()


def top_k_size(num_patches: int, top_k: int, *, share: float = DEFAULT_SHARE) -> int:
    """Choose K for one bag; see ``top_k_sizes``."""
    return int(top_k_sizes(torch.tensor(num_patches), top_k, share=share))


def by_attention(attention_T: Tensor) -> Tensor:
    """Order patches by raw attention, the highest first and of equal ones the earlier, T. No gradient flows."""
    return attention_T.detach().argsort(descending=True, stable=True)


def top_k_patches(attention_T: Tensor, bag_T: Tensor, top_k: TopK) -> Tensor:
    """Choose the positions of each bag's top-K patches by raw attention, K. No gradient flows.

    Args:
        attention_T: Raw attention scores, T.
        bag_T: The bag of every patch.
        top_k: Where the top-K patches are once patches are ordered.
    """
    order_T = by_attention(attention_T)
    order_T = order_T[bag_T[order_T].argsort(stable=True)]
    return order_T[top_k.place_K]


def top_k_mean(score_N: Tensor, top_k: int, *, share: float) -> Tensor:
    """Compute the mean of a bag's K highest scores, in float64.

    K masks the ordered scores and never cuts them: an exported graph takes bags of any size.
    """
    ordered_N = score_N.double().sort(descending=True).values
    length = torch.ones_like(score_N, dtype=torch.int64).sum()
    is_top_N = torch.arange(score_N.shape[0], device=score_N.device) < top_k_sizes(length, top_k, share=share)
    return (ordered_N * is_top_N).sum() / is_top_N.sum()
