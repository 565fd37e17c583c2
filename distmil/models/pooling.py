"""Pooling of packed bags by weights from attention.

T patches of all bags, B bags, F feature.

The method's weights are w_i = sigmoid(a_i) / sum_j sigmoid(a_j), computed as a softmax over logsigmoid(a): the plain
ratio is wrong from a = -88 and NaN from -104 in fp32. Like the baselines' weights it is a ratio of two sums, hence
exact in chunks and over workers, with the running maximum of online softmax (Milakov & Gimelshein 2018).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from distmil.models.layout import BagLayout
from distmil.models.tensors import widen

_MATRIX_BAGS = 64
Pooling = Literal["sigmoid", "softmax", "mean", "max"]
"""Weight of a patch before normalisation: sigmoid(a), exp(a), 1, or 1 for the highest a and 0 for the rest."""


@dataclass(frozen=True)
class PooledPart:
    """Sums over some patches of B bags. Parts of any cut merge to the whole bags' sums."""

    peak_B: Tensor
    """Largest log weight so far; -inf where a bag has no patch in this part."""
    total_B: Tensor
    """Sum of weights relative to the peak."""
    sum_BF: Tensor
    """Sum of relative weights x features."""

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
        """Add up two parts."""
        peak_B = torch.maximum(self.peak_B, other.peak_B)
        mine_B, other_B = (_shrink(part.peak_B, peak_B, pooling) for part in (self, other))
        return PooledPart(
            peak_B,
            mine_B * self.total_B + other_B * other.total_B,
            mine_B[:, None] * self.sum_BF + other_B[:, None] * other.sum_BF,
        )

    def to(self, device: torch.device | str) -> "PooledPart":
        """Move the part to another device."""
        return PooledPart(self.peak_B.to(device), self.total_B.to(device), self.sum_BF.to(device))

    def vectors(self) -> Tensor:
        """Compute the bag vectors, B x F."""
        return self.sum_BF / self.total_B[:, None]

    def share(self, attention_T: Tensor, bag_T: Tensor, pooling: Pooling) -> Tensor:
        """Compute each patch's share of its bag, T. The part is the whole bag's; its peak and total are constants."""
        relative_T = _relative(log_weight(attention_T, pooling) - self.peak_B[bag_T], pooling)
        return relative_T / self.total_B.detach()[bag_T]


def log_weight(attention_T: Tensor, pooling: Pooling) -> Tensor:
    """Compute the logarithm of each patch's weight before normalisation, in fp32 at least."""
    attention_T = widen(attention_T)
    if pooling == "sigmoid":
        return logsigmoid(attention_T)
    return torch.zeros_like(attention_T) if pooling == "mean" else attention_T


def _sum_by_bag(weight_T: Tensor, feature_TF: Tensor, bag_T: Tensor, num_bags: int) -> Tensor:
    """Sum weight x feature over each bag, B x F.

    One product with a B x T matrix of weights costs little beside the network's own while bags are few.
    """
    feature_TF = feature_TF.to(weight_T.dtype)
    if num_bags > _MATRIX_BAGS:
        return weight_T.new_zeros(num_bags, feature_TF.shape[1]).index_add(0, bag_T, weight_T[:, None] * feature_TF)
    num_patches = bag_T.shape[0]  # len() would be a constant of an exported graph
    place_T = torch.arange(num_patches, device=bag_T.device)
    with torch.autocast(feature_TF.device.type, enabled=False):  # sums over a bag are never in half precision
        return weight_T.new_zeros(num_bags, num_patches).index_put((bag_T, place_T), weight_T) @ feature_TF


def _relative(difference_T: Tensor, pooling: Pooling) -> Tensor:
    """Compute weights relative to the peak's from the difference of the logarithms."""
    return (difference_T == 0).to(difference_T.dtype) if pooling == "max" else difference_T.exp()


def _shrink(old_B: Tensor, new_B: Tensor, pooling: Pooling) -> Tensor:
    """Compute the factor from an old peak to a new one; 0 where there was none."""
    return torch.where(old_B == -torch.inf, torch.zeros_like(old_B), _relative(old_B - new_B, pooling))


def pool(feature_TF: Tensor, attention_T: Tensor, layout: BagLayout, pooling: Pooling = "sigmoid") -> Tensor:
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
        bag_T = torch.zeros_like(attention_T, dtype=torch.int64)
        part = PooledPart.of(feature_TF.double(), attention_T.double(), bag_T, num_bags=1, pooling=self._pooling)
        self._part = part if self._part is None else self._part.merge(part, self._pooling)

    def result(self) -> Tensor:
        """Compute the bag vector, F, in float64. Raises: ValueError if nothing was added."""
        if self._part is None:
            raise ValueError("every bag needs at least one patch")
        return self._part.vectors()[0]
