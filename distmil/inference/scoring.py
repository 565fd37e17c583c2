"""The scores of one bag by a network, or by several: of every patch, and the slide read-outs. No bag is ever cut.

N patches of the bag, E embedding, F feature, C classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmil.bags.source import Patches, PatchSource
from distmil.inference.shift import Shift
from distmil.models.layout import DEFAULT_SHARE, top_k_mean
from distmil.models.network import Network
from distmil.models.pooling import RunningPool
from distmil.models.regions import PatchEvidence, Places, ScoreGrid

SCORE_CHUNK = 16_384
NETWORK_READ_OUTS = ("bag", "max", "topk_mean")
"""What the network alone gives."""
READ_OUTS = (*NETWORK_READ_OUTS, "regions")
"""All read-outs; ``regions`` needs the patches' places and the bundle's evidence."""

Floats = NDArray[np.float32]
Embed = Callable[[Patches], Tensor]
"""From what a source gives to embeddings, T x E."""


@dataclass(frozen=True)
class BagScores:
    """Scores of one bag. ``probability`` is that of any class but 0; fused = attention x probability."""

    attention_N: Floats
    probability_N: Floats
    topk_probability_N: Floats
    fused_N: Floats
    class_probability_NC: Floats
    bag_C: NDArray[np.float64]
    bag: float
    max: float
    topk_mean: float
    regions: float = math.nan
    """NaN where places or evidence are not known."""
    shift: float = math.nan
    """How far the embeddings lie from those of training; see ``Shift``. NaN where it was not asked for."""

    @property
    def is_finite(self) -> bool:
        """Tell whether every score is a finite number."""
        values = (self.bag_C, self.attention_N, self.probability_N, self.topk_probability_N, self.class_probability_NC)
        return all(bool(np.isfinite(value).all()) for value in values)

    def with_regions(self, places: Places, evidence: PatchEvidence | None) -> "BagScores":
        """Add the read-out ``regions``, where the bundle has the evidence for it."""
        return self if evidence is None else replace(self, regions=ScoreGrid.of(self.fused_N, places).score(evidence))


def score_bag(
    heads: Sequence[Network],
    source: PatchSource,
    embed: Embed,
    *,
    top_k: int,
    top_k_share: float = DEFAULT_SHARE,
    chunk: int = SCORE_CHUNK,
    with_shift: bool = False,
) -> BagScores:
    """Score every patch of a bag and the bag itself, chunk by chunk; the result does not depend on the chunk.

    Of several networks the probabilities and the attention are averaged; fused and the read-outs follow from these.

    Args:
        heads: The networks, in evaluation mode.
        source: The bag's patches.
        embed: From what the source gives to embeddings, T x E; called once a chunk.
        top_k: Largest K of ``topk_mean``.
        top_k_share: Largest K as a share of the bag.
        chunk: Patches held at once.
        with_shift: Compute how far the embeddings lie from those of training.
    """
    passes = [_Pass(head, with_shift=with_shift) for head in heads]
    with torch.no_grad():
        for patches in _chunks(source, chunk):
            embedding_TE = embed(patches)
            for one in passes:
                one.add(embedding_TE)
        bag_C = np.mean([one.bag_C() for one in passes], axis=0)
    attention_N, class_NC, topk_N = (
        np.mean(same, axis=0) for same in zip(*(one.patches() for one in passes), strict=True)
    )
    probability_N = class_NC[:, 1:].sum(axis=1)
    fused_N = attention_N * probability_N
    return BagScores(
        attention_N=attention_N,
        probability_N=probability_N,
        topk_probability_N=topk_N,
        fused_N=fused_N,
        class_probability_NC=class_NC,
        bag_C=bag_C,
        bag=float(bag_C[1:].sum()),
        max=float(fused_N.max()),
        topk_mean=float(top_k_mean(torch.from_numpy(fused_N), top_k, share=top_k_share)),
        shift=float(np.mean([one.shift.distance() for one in passes if one.shift])) if with_shift else math.nan,
    )


class _Pass:
    """One network's way through a bag, chunk by chunk."""

    def __init__(self, head: Network, *, with_shift: bool) -> None:
        self.head = head
        self.shift = Shift(head.normaliser) if with_shift else None
        self._pooled = RunningPool(head.pooling)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, embedding_TE: Tensor) -> None:
        """Score the next patches."""
        head = self.head
        if self.shift is not None:
            self.shift.add(embedding_TE)
        feature_TF, attention_T = head(embedding_TE)
        self._pooled.add(feature_TF, attention_T)
        log_TC = head.patch_logits(feature_TF, attention_T).log_softmax(1)
        topk_T = 1 - head.topk_logits(feature_TF, attention_T).softmax(1)[:, 0]
        self._parts.append((attention_T.sigmoid().cpu(), log_TC.exp().cpu(), topk_T.cpu()))

    def bag_C(self) -> NDArray[np.float64]:  # C is a dimension
        """Compute the class probabilities of the whole bag, C."""
        bag_F = self._pooled.result().to(next(self.head.parameters()).dtype)
        return self.head.pooled_logits(bag_F[None]).double().softmax(1)[0].cpu().numpy()

    def patches(self) -> list[NDArray[Any]]:
        """Join the patches' attention, N, class probabilities, N x C, and C2's probability, N."""
        return [torch.cat(pieces).numpy() for pieces in zip(*self._parts, strict=True)]


def _chunks(source: PatchSource, chunk: int) -> Iterator[Patches]:
    for start in range(0, len(source), chunk):
        yield source.take(slice(start, start + chunk))
