"""Pooling of packed bags by weights from attention, and the choice of the top-K patches.

T patches of all bags, B bags, F feature, K top patches of all bags.

The method's weights are w_i = sigmoid(a_i) / sum_j sigmoid(a_j), computed as a softmax over logsigmoid(a): the plain
ratio is wrong from a = -88 and NaN from -104 in fp32. Like the baselines' weights it is a ratio of two sums, hence
exact in chunks and over workers, with the running maximum of online softmax (Milakov & Gimelshein 2018).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from distmil.models.tensors import on_device

_MATRIX_BAGS = 64
DEFAULT_SHARE = 0.1
_ROUNDING = 1e-6  # 0.1 x 30 is a little more than 3 in floating point
Pooling = Literal["sigmoid", "softmax", "mean", "max"]
"""What a patch weighs before normalisation: sigmoid(a), exp(a), 1, or 1 for the highest a and 0 for the rest."""


@dataclass(frozen=True)
class PooledPart:
    """What some patches bring to the vectors of B bags. Parts of any cut merge to the same result."""

    peak_B: Tensor
    """Largest log weight so far; -inf where a bag has no patch in this part."""
    total_B: Tensor
    """Sum of weights relative to the peak."""
    sum_BF: Tensor
    """Sum of such weights x features."""

    @classmethod
    def of(
        cls, feature_TF: Tensor, attention_T: Tensor, bag_T: Tensor, *, num_bags: int, pooling: Pooling
    ) -> "PooledPart":
        """Pool patches whose bags are ``bag_T``; features are not detached, the peak is."""
        log_T = log_weight(attention_T, pooling)
        peak_B = log_T.new_full((num_bags,), -torch.inf).scatter_reduce(0, bag_T, log_T.detach(), "amax")
        weight_T = _relative(log_T - peak_B[bag_T], pooling)
        total_B = weight_T.new_zeros(num_bags).index_add(0, bag_T, weight_T)
        return cls(peak_B, total_B, _sum_by_bag(weight_T, feature_TF, bag_T, num_bags))

    def merge(self, other: "PooledPart", pooling: Pooling) -> "PooledPart":
        """Return the part of both's patches."""
        peak_B = torch.maximum(self.peak_B, other.peak_B)
        mine_B, other_B = (_shrink(part.peak_B, peak_B, pooling) for part in (self, other))
        return PooledPart(
            peak_B,
            mine_B * self.total_B + other_B * other.total_B,
            mine_B[:, None] * self.sum_BF + other_B[:, None] * other.sum_BF,
        )

    def to(self, device: torch.device | str) -> "PooledPart":
        """Return the part on another device."""
        return PooledPart(self.peak_B.to(device), self.total_B.to(device), self.sum_BF.to(device))

    def vectors(self) -> Tensor:
        """Return the bag vectors, B x F."""
        return self.sum_BF / self.total_B[:, None]

    def share(self, attention_T: Tensor, bag_T: Tensor, pooling: Pooling) -> Tensor:
        """Return each patch's share of its bag, T, given the whole bag's part, whose peak and total are constants."""
        relative_T = _relative(log_weight(attention_T, pooling) - self.peak_B[bag_T], pooling)
        return relative_T / self.total_B.detach()[bag_T]


def log_weight(attention_T: Tensor, pooling: Pooling) -> Tensor:
    """Return the logarithm of what each patch weighs before normalisation, fp32 at least."""
    attention_T = widen(attention_T)
    if pooling == "sigmoid":
        return logsigmoid(attention_T)
    return torch.zeros_like(attention_T) if pooling == "mean" else attention_T


def _sum_by_bag(weight_T: Tensor, feature_TF: Tensor, bag_T: Tensor, num_bags: int) -> Tensor:
    """Return the sum of weight x feature of each bag, B x F.

    One product with a B x T matrix of weights costs little beside the network's own while bags are few.
    """
    feature_TF = feature_TF.to(weight_T.dtype)
    if num_bags > _MATRIX_BAGS:
        return weight_T.new_zeros(num_bags, feature_TF.shape[1]).index_add(0, bag_T, weight_T[:, None] * feature_TF)
    place_T = torch.arange(len(bag_T), device=bag_T.device)
    with torch.autocast(feature_TF.device.type, enabled=False):  # sums over a bag are never in half precision
        return weight_T.new_zeros(num_bags, len(bag_T)).index_put((bag_T, place_T), weight_T) @ feature_TF


def _relative(difference_T: Tensor, pooling: Pooling) -> Tensor:
    """Return weights relative to the peak's from the difference of the logarithms."""
    return (difference_T == 0).to(difference_T.dtype) if pooling == "max" else difference_T.exp()


def _shrink(old_B: Tensor, new_B: Tensor, pooling: Pooling) -> Tensor:
    """Return the factor from an old peak to a new one; 0 where there was none."""
    return torch.where(old_B == -torch.inf, torch.zeros_like(old_B), _relative(old_B - new_B, pooling))


@dataclass(frozen=True)
class Layout:
    """Where the patches of packed bags lie. Made on the host: no step waits for the device to say how long bags are."""

    lengths: tuple[int, ...]
    bag_T: Tensor
    """The bag of every patch."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Layout":
        """Lay out bags of so many patches. Raises: ValueError if a bag is empty."""
        if any(length < 1 for length in lengths):
            raise ValueError("every bag needs at least one patch")
        return cls(tuple(lengths), on_device(np.repeat(np.arange(len(lengths)), lengths), device))

    def top_k(self, top_k: int, *, share: float = DEFAULT_SHARE, num_bags: int | None = None) -> "TopK":
        """Lay out the top-K patches of the first bags, or of all; see ``top_k_size``."""
        lengths = np.array(self.lengths[:num_bags], np.int64)
        sizes = np.array([top_k_size(length, top_k, share=share) for length in lengths], np.int64)
        bag_K = np.repeat(np.arange(len(lengths)), sizes)
        rank_K = np.arange(len(bag_K)) - np.repeat(sizes.cumsum() - sizes, sizes)
        place_K = np.repeat(lengths.cumsum() - lengths, sizes) + rank_K
        return TopK(on_device(place_K, self.bag_T.device), on_device(bag_K, self.bag_T.device))


@dataclass(frozen=True)
class TopK:
    """Where the top-K patches of packed bags are among all patches ordered by bag and attention."""

    place_K: Tensor
    bag_K: Tensor
    """The bag of each."""


def pool(feature_TF: Tensor, attention_T: Tensor, layout: Layout, pooling: Pooling = "sigmoid") -> Tensor:
    """Pool every packed bag into one vector by normalised weights.

    Args:
        feature_TF: Patch features of all bags, concatenated, T x F.
        attention_T: Raw attention scores, T.
        layout: The bags.
        pooling: Where the weights come from; the method's are sigmoid(attention).

    Returns:
        Bag vectors, B x F: per bag, sum of weight x feature over sum of weights.

    Source: the method's formulas for L2 (DESIGN section 1).
    """
    num_bags = len(layout.lengths)
    return PooledPart.of(feature_TF, attention_T, layout.bag_T, num_bags=num_bags, pooling=pooling).vectors()


class RunningPool:
    """Pools one bag that comes in chunks, exactly, in the memory of one chunk."""

    def __init__(self, pooling: Pooling = "sigmoid") -> None:
        self._pooling: Pooling = pooling
        self._part: PooledPart | None = None

    def add(self, feature_TF: Tensor, attention_T: Tensor) -> None:
        """Take in a chunk: features T x F and raw attention T."""
        bag_T = torch.zeros(len(attention_T), dtype=torch.int64, device=attention_T.device)
        part = PooledPart.of(feature_TF.double(), attention_T.double(), bag_T, num_bags=1, pooling=self._pooling)
        self._part = part if self._part is None else self._part.merge(part, self._pooling)

    def result(self) -> Tensor:
        """Return the bag vector, F, in float64. Raises: ValueError if nothing was added."""
        if self._part is None:
            raise ValueError("every bag needs at least one patch")
        return self._part.vectors()[0]


def top_k_size(num_patches: int, top_k: int, *, share: float = DEFAULT_SHARE) -> int:
    """Choose K for a bag.

    Args:
        num_patches: Patches of the bag.
        top_k: Largest K.
        share: Largest K as a share of the bag, above 0; it is rounded up.

    Returns:
        K, at least 1.
    """
    return min(top_k, max(1, math.ceil(share * num_patches - _ROUNDING)))


def top_k_patches(attention_T: Tensor, bag_T: Tensor, top_k: TopK) -> Tensor:
    """Return the positions of each bag's top-K patches by raw attention, K. No gradient flows.

    Args:
        attention_T: Raw attention scores, T.
        bag_T: The bag of every patch.
        top_k: How many each bag has.
    """
    by_attention = attention_T.detach().argsort(descending=True, stable=True)
    order = by_attention[bag_T[by_attention].argsort(stable=True)]
    return order[top_k.place_K]


def widen(values: Tensor) -> Tensor:
    """Return half-precision values as fp32; wider ones stay. Scores and losses are never computed in less."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values
