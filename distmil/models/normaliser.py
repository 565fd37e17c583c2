"""From raw embeddings to the attention block's feature: normalisation, and on a CPU the whole way block by block.

T patches, E embedding, F feature.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CLIP = 6.0
_BLOCK = 1024  # rows whose values stay in the cache from one operation to the next


class Normaliser(nn.Module):
    """Clips embeddings to the training patches' range and standardises them; its statistics travel with the weights."""

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((embedding_dim,), -torch.inf))
        self.register_buffer("high", torch.full((embedding_dim,), torch.inf))
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("scale", torch.ones(embedding_dim))

    def fit(self, embedding_TE: Tensor) -> None:
        """Take the statistics of training patches: the 0.1 to 99.9 % range, then mean and deviation inside it.

        The range is narrowed to CLIP deviations around the mean. A constant dimension becomes zero.
        """
        sample_TE = embedding_TE.float()
        tail = round(0.001 * (len(sample_TE) - 1)) + 1
        low = sample_TE.topk(tail, dim=0, largest=False).values[-1]
        high = sample_TE.topk(tail, dim=0).values[-1]
        clipped_TE = sample_TE.clamp(low, high)
        self.mean.copy_(clipped_TE.mean(0))
        deviation = clipped_TE.std(0, correction=0)
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0))
        self.low.copy_(torch.maximum(low, self.mean - CLIP * deviation))
        self.high.copy_(torch.minimum(high, self.mean + CLIP * deviation))

    def forward(self, embedding_TE: Tensor) -> Tensor:
        """Return normalised embeddings, T x E, within +-CLIP."""
        return self.centred(embedding_TE) * self.scale

    def centred(self, embedding_TE: Tensor) -> Tensor:
        """Return clipped embeddings less their mean, T x E; what is left to do is a factor per dimension."""
        return embedding_TE.to(self.mean.dtype).clamp(self.low, self.high) - self.mean


class _FeatureInBlocks(torch.autograd.Function):
    """dropout(relu(x W + b)) of centred embeddings x that are never kept: both passes make them anew.

    On a CPU, T x E values that go through memory once for every operation cost as much as the product itself; blocks
    that stay in the cache cost a few per cent. What was dropped or cut off is zero in the output: nothing else is kept.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by position
        ctx: Any, normaliser: Normaliser, embedding_TE: Tensor, weight_FE: Tensor, bias_F: Tensor, drop: float
    ) -> Tensor:
        threshold = round(256 * drop)
        ctx.normaliser, ctx.keep = normaliser, 1 - threshold / 256
        feature_TF = weight_FE.new_empty(len(embedding_TE), len(weight_FE))
        for rows, centred_TE in _centred_blocks(normaliser, embedding_TE, weight_FE.dtype):
            block_TF = torch.addmm(bias_F, centred_TE, weight_FE.T, out=feature_TF[rows]).clamp_(min=0)
            if threshold:
                block_TF.mul_(_random_bytes(block_TF.shape) >= threshold).mul_(1 / ctx.keep)
        ctx.save_for_backward(embedding_TE, weight_FE, feature_TF)
        return feature_TF

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
        embedding_TE, weight_FE, feature_TF = ctx.saved_tensors
        wide = torch.promote_types(weight_FE.dtype, torch.float32)  # sums over blocks are not kept in half precision
        weight_gradient_FE = torch.zeros_like(weight_FE, dtype=wide)
        bias_gradient_F = weight_gradient_FE.new_zeros(len(weight_FE))
        for rows, centred_TE in _centred_blocks(ctx.normaliser, embedding_TE, weight_FE.dtype):
            gradient_TF = gradients[0][rows] * (feature_TF[rows] > 0)
            if weight_FE.dtype == wide:
                weight_gradient_FE.addmm_(gradient_TF.T, centred_TE)
            else:
                weight_gradient_FE += gradient_TF.T @ centred_TE
            bias_gradient_F += gradient_TF.sum(0, dtype=wide)
        weight_gradient_FE /= ctx.keep
        return (
            None,
            None,
            weight_gradient_FE.to(weight_FE.dtype),
            (bias_gradient_F / ctx.keep).to(weight_FE.dtype),
            None,
        )


def feature_in_blocks(
    normaliser: Normaliser, embedding_TE: Tensor, weight_FE: Tensor, bias_F: Tensor, *, drop: float
) -> Tensor:
    """Return dropout(relu(centred embeddings x weight + bias)), T x F, in autocast's precision.

    Args:
        normaliser: Centres the embeddings; its factors are in the weight already.
        embedding_TE: Raw embeddings on a CPU, which need no gradient.
        weight_FE: Weight.
        bias_F: Bias.
        drop: Share to drop, in steps of 1/256.
    """
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        weight_FE, bias_F = weight_FE.to(half), bias_F.to(half)
    feature_TF: Tensor = _FeatureInBlocks.apply(normaliser, embedding_TE, weight_FE, bias_F, drop)
    return feature_TF


def _centred_blocks(normaliser: Normaliser, embedding_TE: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows and their centred embeddings, in scratch space that the next block overwrites."""
    scratch_TE = normaliser.mean.new_empty(min(_BLOCK, len(embedding_TE)), embedding_TE.shape[1])
    for start in range(0, len(embedding_TE), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part_TE = embedding_TE[rows]
        block_TE = scratch_TE[: len(part_TE)].copy_(part_TE)
        torch.clamp(block_TE, normaliser.low, normaliser.high, out=block_TE).sub_(normaliser.mean)
        yield rows, block_TE.to(dtype)


def _random_bytes(shape: torch.Size) -> Tensor:
    """Return bytes from torch's generator, eight a draw: a twentieth of the time of Bernoulli draws on a CPU."""
    draws = torch.empty(-(-shape.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.uint8)[: shape.numel()].view(shape)
