"""Normalisation of raw embeddings by the training patches' statistics.

T patches, E embedding.
"""

import torch
from torch import Tensor, nn

CLIP = 6.0


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
        """Normalise embeddings, T x E, within +-CLIP."""
        return self.centred(embedding_TE) * self.scale

    def centred(self, embedding_TE: Tensor) -> Tensor:
        """Clip embeddings and subtract their mean, T x E; only a factor per dimension remains.

        Under autocast half-precision embeddings stay in half precision: a GPU takes half as long as through fp32.
        """
        device = embedding_TE.device.type
        if embedding_TE.requires_grad or not torch.is_autocast_enabled(device):
            return torch.clamp(embedding_TE, self.low, self.high) - self.mean
        low, high, mean = (values.to(embedding_TE.dtype) for values in (self.low, self.high, self.mean))
        return embedding_TE.clamp(low, high).sub_(mean).to(torch.get_autocast_dtype(device))
