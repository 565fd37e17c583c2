"""A trained network that remembers what it says of every patch of a pool: slides of the pool are scored by looking up.

P patches of the pool, T patches of a slide, F feature, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.poolslides import Pool, PoolSource
from distmil.bags.bag import Bag
from distmil.models.network import Network
from distmil.training.learner import Learner

CHUNK = 4096


class PoolHead(nn.Module):
    """Stands for a network in scoring; its input is the rows of patches in the pool, T x 1."""

    def __init__(self, head: Network, pool: Pool) -> None:
        super().__init__()
        self.head = head.train(False)
        self.pooling = head.pooling
        with torch.no_grad():
            parts = [head(torch.from_numpy(pool.all[i : i + CHUNK])) for i in range(0, len(pool.all), CHUNK)]
        self.feature_PF, self.attention_P = (torch.cat(pieces) for pieces in zip(*parts, strict=True))

    def forward(self, row_T1: Tensor) -> tuple[Tensor, Tensor]:
        """Look up patch features, T x F, and raw attention scores, T."""
        return self.feature_PF[row_T1[:, 0]], self.attention_P[row_T1[:, 0]]

    def patch_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute C1's logits of single patches, T x C."""
        return self.head.patch_logits(feature_TF, attention_T)

    def topk_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute the logits of single top-K patches, T x C."""
        return self.head.topk_logits(feature_TF, attention_T)

    def pooled_logits(self, bag_BF: Tensor) -> Tensor:
        """Compute C1's logits of bag vectors, B x C."""
        return self.head.pooled_logits(bag_BF)


def remembering(learner: Learner, pool: Pool) -> Learner:
    """Make a learner that scores slides of the pool by looking up; it cannot train."""
    return replace(learner, head=PoolHead(learner.eval_model.head, pool), averaged=None)  # type: ignore[arg-type]


def as_rows(slides: Sequence[Bag]) -> list[Bag]:
    """Put rows of the pool in the place of embeddings, as ``PoolHead`` takes them."""
    found = []
    for slide in slides:
        assert isinstance(slide.source, PoolSource)
        row_P1 = np.arange(len(slide.source.embedding_PE))[:, None]
        found.append(replace(slide, source=PoolSource(row_P1, slide.source.row_N)))
    return found
