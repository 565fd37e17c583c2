"""Attention pooling of packed bags, and the choice of the top-K patches.

T patches of all bags, B bags, F feature. Offsets are the start of each bag and the total, B + 1, increasing.

Weights are w_i = sigmoid(a_i) / sum_j sigmoid(a_j), computed as a softmax over logsigmoid(a): the plain ratio is wrong
from a = -88 and NaN from -104 in fp32. The ratio of two sums is exact in chunks, with the running maximum of online
softmax (Milakov & Gimelshein 2018).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bag_index(offsets: Tensor) -> Tensor:
    """Return the bag of every patch, T. Raises: ValueError if a bag is empty."""
    lengths = offsets.diff()
    if not bool((lengths > 0).all()):
        raise ValueError("every bag needs at least one patch")
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)


def pool(feature_TF: Tensor, attention_T: Tensor, offsets: Tensor) -> Tensor:
    """Pool every packed bag into one vector by sigmoid-normalised attention.

    Args:
        feature_TF: Patch features of all bags, concatenated, T x F.
        attention_T: Raw attention scores, T.
        offsets: Start of each bag and the total, int64, B + 1, increasing.

    Returns:
        Bag vectors, B x F: per bag, sum of sigmoid(attention) x feature over sum of sigmoid(attention).

    Raises:
        ValueError: If a bag is empty.

    Source: the method's formulas for L2 (DESIGN section 1).
    """
    bag_T = bag_index(offsets)
    num_bags = len(offsets) - 1
    log_T = logsigmoid(widen(attention_T))
    peak_B = log_T.new_full((num_bags,), -torch.inf).scatter_reduce(0, bag_T, log_T.detach(), "amax")
    weight_T = (log_T - peak_B[bag_T]).exp()
    total_B = weight_T.new_zeros(num_bags).index_add(0, bag_T, weight_T)
    share_T = weight_T / total_B[bag_T]
    weighted_TF = share_T[:, None] * feature_TF.to(share_T.dtype)
    return weighted_TF.new_zeros(num_bags, feature_TF.shape[1]).index_add(0, bag_T, weighted_TF)


class RunningPool:
    """Pools one bag that comes in chunks, exactly, in the memory of one chunk."""

    def __init__(self) -> None:
        self._peak: Tensor | None = None
        self._total = torch.zeros(())
        self._sum_F = torch.zeros(())

    def add(self, feature_TF: Tensor, attention_T: Tensor) -> None:
        """Take in a chunk: features T x F and raw attention T."""
        log_T = logsigmoid(attention_T.double())
        peak = log_T.max()
        if self._peak is not None:
            peak = torch.maximum(peak, self._peak)
            shrink = (self._peak - peak).exp()
            self._total, self._sum_F = self._total * shrink, self._sum_F * shrink
        weight_T = (log_T - peak).exp()
        self._total = self._total + weight_T.sum()
        self._sum_F = self._sum_F + weight_T @ feature_TF.double()
        self._peak = peak

    def result(self) -> Tensor:
        """Return the bag vector, F, in float64. Raises: ValueError if nothing was added."""
        if self._peak is None:
            raise ValueError("every bag needs at least one patch")
        return self._sum_F / self._total


def top_k_size(num_patches: int, top_k: int) -> int:
    """Return K for a bag: at most a tenth of it, rounded up, and at least one."""
    return min(top_k, max(1, math.ceil(0.1 * num_patches)))


def top_k_patches(attention_T: Tensor, offsets: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the positions of each bag's top-K patches by raw attention, and the bag of each. No gradient flows.

    Args:
        attention_T: Raw attention scores, T.
        offsets: Start of each bag and the total, B + 1.
        top_k: Largest K; see ``top_k_size``.
    """
    bag_T = bag_index(offsets)
    by_attention = attention_T.detach().argsort(descending=True, stable=True)
    order = by_attention[bag_T[by_attention].argsort(stable=True)]
    rank_T = torch.arange(len(order), device=order.device) - offsets[:-1][bag_T]
    lengths = offsets.diff()
    size_B = torch.div(lengths + 9, 10, rounding_mode="floor").clamp(min=1, max=top_k)
    chosen = rank_T < size_B[bag_T]
    return order[chosen], bag_T[chosen]


def widen(values: Tensor) -> Tensor:
    """Return half-precision values as fp32; wider ones stay. Scores and losses are never computed in less."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values
