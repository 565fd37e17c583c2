"""The losses of a bag that does not pass at once, in chunks shared by all workers, exactly.

A chunked bag passes twice. The first pass, without gradients, pools its vector and finds its top-K patches. The bag
loss then gives the vector's gradient g. The second pass recomputes each chunk and sends back the chunk's part of g. For
F = sum_i s_i f_i with shares s = softmax(l), dF/df_i = s_i and dF/dl_i = s_i (f_i - F).

T patches of a chunk, B = 1 bag, K top patches, E embedding, F feature, C classes.
"""

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from distmil.bags.loader import load_ahead, pack
from distmil.bags.source import Indices, PatchSource
from distmil.models import losses
from distmil.models.layout import by_attention, top_k_size
from distmil.models.pooling import PooledPart
from distmil.models.tensors import widen
from distmil.training.learner import Learner
from distmil.training.losses import LossSettings, topk_losses
from distmil.training.workers import Workers


class ChunkedBag:
    """This worker's part in the losses of a bag that does not pass at once."""

    def __init__(
        self,
        learner: Learner,
        source: PatchSource,
        sample: Indices | None,
        *,
        label: int,
        aim: LossSettings,
        workers: Workers,
    ) -> None:
        self._learner, self._source, self._aim, self._workers = learner, source, aim, workers
        self._count = len(source) if sample is None else len(sample)
        self._label_B = torch.tensor([label], device=learner.device)
        start, stop = workers.piece(self._count)
        cuts = np.linspace(start, stop, num=math.ceil((stop - start) / aim.config.bags.patches_per_step) + 1)
        spans = list(itertools.pairwise(cuts.round().astype(int).tolist()))
        self._start = start
        self._pieces: list[Indices | slice] = [slice(a, b) if sample is None else sample[a:b] for a, b in spans]
        self._sample = sample
        with learner.seeded(aim.config.training.seed):  # the same dimensions are dropped in all chunks, on all workers
            self._scale_E = learner.head.draw_scale()

    def backward(self) -> dict[str, Tensor]:
        """Add this worker's gradients of the bag's losses and return its share of their values."""
        weights, found = self._aim.config.losses, {}
        head = self._learner.head
        is_pooled = bool(weights.bag) and not head.bag_loss_on_patches
        if is_pooled or weights.topk:
            part, attention_T = self._first_pass()
        if is_pooled:
            found["bag"] = self._pooled(part)
        elif weights.bag:
            found["bag"] = self._each_patch()
        if weights.topk:
            found["topk"] = self._topk(attention_T)
        return found

    def _forward(self, index: int, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Pass one chunk; a second time with the same dropout."""
        learner = self._learner
        seed = self._aim.config.training.seed
        with learner.seeded(seed, self._workers.rank, index), learner.autocast():
            feature_TF, attention_T = learner.head(learner.embed(patches), self._scale_E)
        return feature_TF, attention_T

    def _chunks(self) -> "enumerate[Tensor]":
        device = self._learner.device
        return enumerate(load_ahead(lambda piece: pack([(self._source, piece)], device), self._pieces, device))

    def _first_pass(self) -> tuple[PooledPart, Tensor]:
        """Return the whole bag's pooled part, and the attention of this worker's patches."""
        head, part, scores = self._learner.head, None, []
        with torch.no_grad():
            for index, patches in self._chunks():
                feature_TF, attention_T = self._forward(index, patches)
                mine = head.pool_part(feature_TF, attention_T, self._one_bag(attention_T), num_bags=1)
                part = mine if part is None else part.merge(mine, head.pooling)
                scores.append(widen(attention_T))
        device = self._learner.device
        parts = [found.to(device) for found in self._workers.gather(part and part.to("cpu")) if found is not None]
        whole = functools.reduce(lambda one, other: one.merge(other, head.pooling), parts)
        return whole, torch.cat(scores) if scores else torch.empty(0, device=device)

    def _pooled(self, part: PooledPart) -> Tensor:
        """Send the bag loss back through every chunk."""
        head, aim = self._learner.head, self._aim
        vector_BF = part.vectors().detach().requires_grad_()
        loss = aim.of_bags(losses.bag_loss(head.pooled_logits(vector_BF), self._label_B), self._label_B)
        is_first = self._workers.rank == 0  # the classifier's own gradient counts once
        weight = aim.config.losses.bag
        if is_first:
            (weight * loss).backward()  # type: ignore[no-untyped-call]
            assert vector_BF.grad is not None
            gradient_BF = vector_BF.grad
        else:
            (gradient_BF,) = torch.autograd.grad(weight * loss, vector_BF)
        for index, patches in self._chunks():
            feature_TF, attention_T = self._forward(index, patches)
            bag_T = self._one_bag(attention_T)
            share_T = part.share(attention_T, bag_T, head.pooling)
            along_T = widen(feature_TF) @ gradient_BF[0] - vector_BF.detach()[0] @ gradient_BF[0]
            (share_T * along_T).sum().backward()  # type: ignore[no-untyped-call]
        return loss.detach() if is_first else torch.zeros_like(loss)

    def _each_patch(self) -> Tensor:
        """Send back the loss of every patch under the bag's label."""
        total = torch.zeros((), device=self._learner.device)
        for index, patches in self._chunks():
            feature_TF, attention_T = self._forward(index, patches)
            logits_TC = self._learner.head.patch_logits(feature_TF, attention_T)
            loss_T = cross_entropy(logits_TC, self._label_B.expand(len(logits_TC)), reduction="sum")
            loss = self._aim.of_bags(loss_T[None] / self._count, self._label_B)
            (self._aim.config.losses.bag * loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def _topk(self, attention_T: Tensor) -> Tensor:
        """Send back the loss of the whole bag's top-K patches, as far as they are this worker's."""
        aim, learner = self._aim, self._learner
        k = top_k_size(self._count, aim.config.bags.top_k, share=aim.config.bags.top_k_share)
        best = by_attention(attention_T)[:k].cpu()
        mine = list(zip((-attention_T.cpu()[best]).tolist(), (best + self._start).tolist(), strict=True))
        chosen = sorted(found for part in self._workers.gather(mine) for found in part)[:k]
        start, stop = self._start, self._start + len(attention_T)
        own = np.array([place for _, place in chosen if start <= place < stop], np.int64)
        if not len(own):
            return torch.zeros((), device=learner.device)
        patches = pack([(self._source, own if self._sample is None else self._sample[own])], learner.device)
        feature_KF, attention_K = self._forward(len(self._pieces), patches)
        bag_K = self._one_bag(attention_K)
        loss = topk_losses(learner.head, feature_KF, attention_K, bag_K=bag_K, label_B=self._label_B, aim=aim) * (
            len(own) / k
        )
        (aim.config.losses.topk * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _one_bag(self, attention_T: Tensor) -> Tensor:
        return torch.zeros(len(attention_T), dtype=torch.int64, device=attention_T.device)
