"""One training step: the losses of a worker's share, packed into one pass, or of a giant bag in chunks, exactly.

A step is planned for the whole group of workers. Each worker adds up the losses of its own bags divided by the group's
totals, and gradients are summed over the group: the loss of n workers is the loss of one.

A giant bag passes twice. The first pass, without gradients, pools its vector and finds its top-K patches; the bag loss
then gives the vector's gradient g. The second recomputes each chunk and sends back what the chunk has of it: for
F = sum_i s_i f_i with shares s = softmax(l), dF/df_i = s_i and dF/dl_i = s_i (f_i - F).

T patches, B slide bags, N patches of the mixed bag, E embedding, F feature, C classes.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from distmil import losses
from distmil.bags import Bag, Indices, PatchSource
from distmil.batches import Batch, load_ahead, load_batch, pack
from distmil.config import Config
from distmil.errors import TrainingError
from distmil.group import Group
from distmil.learner import Learner
from distmil.models.network import Network
from distmil.models.pooling import PooledPart, top_k_patches, top_k_size, widen
from distmil.sampling import Step
from distmil.tensors import Rows

LOSSES = ("patch", "bag", "topk", "attention")


@dataclass(frozen=True)
class Totals:
    """What the losses of a step are divided by: counts over the whole group."""

    num_slides: int
    num_bags: int
    """Slides, and the mixed bag where the bag loss is on it as well."""
    num_mixed: int


@dataclass(frozen=True)
class Aim:
    """What a step's losses need beside the patches: the configuration, the totals, and what each class weighs."""

    config: Config
    totals: Totals
    class_weight_C: Tensor | None

    def of_slides(self, loss_B: Tensor, label_B: Tensor) -> Tensor:
        """Return the sum of slide losses by class weight, each a share of the group's mean."""
        if self.class_weight_C is not None:
            loss_B = loss_B * self.class_weight_C.to(loss_B)[label_B]
        return loss_B.sum() / self.totals.num_slides

    def of_bags(self, loss_B: Tensor, label_B: Tensor) -> Tensor:
        """Return the same where the mixed bag counts as one more."""
        return self.of_slides(loss_B, label_B) * (self.totals.num_slides / self.totals.num_bags)

    def weigh(self, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each loss in the order of LOSSES, 0 where there is none, and their weighted sum."""
        nothing = next(iter(found.values())).new_zeros(())
        loss = torch.stack([getattr(self.config.losses, name) * value for name, value in found.items()]).sum()
        return torch.stack([found.get(name, nothing) for name in LOSSES]), loss


@dataclass(frozen=True)
class Taken:
    """A step that was taken; its numbers may still be on their way from the device."""

    numbers: Tensor
    """The losses and their weighted sum, summed over the group, and the norm of the gradient."""
    is_there: torch.cuda.Event | None
    bags: Sequence[Bag]
    step: Step

    def losses(self) -> dict[str, float]:
        """Return the group's losses, each unweighted, and their weighted sum as ``loss``; wait for them.

        Raises:
            TrainingError: If the loss or the gradient is not finite, naming the slides of the step.
        """
        if self.is_there is not None:
            self.is_there.synchronize()
        *found, norm = self.numbers.tolist()
        if not math.isfinite(found[-1] + norm):
            what, value = ("the gradient's norm", norm) if math.isfinite(found[-1]) else ("the loss", found[-1])
            involved = sorted({self.bags[i].slide_id for i in (*self.step.bags, *self.step.mixed_bag.tolist())})
            raise TrainingError(
                f"{what} is {value} in a step on slides {', '.join(involved[:20])}"
                f"{' and more' if len(involved) > 20 else ''}; lower training.lr, or look at these slides' embeddings"
            )
        return dict(zip([*LOSSES, "loss"], found, strict=True))


def take_step(
    learner: Learner,
    bags: Sequence[Bag],
    step: Step,
    config: Config,
    group: Group,
    *,
    rate: float,
    batch: Batch | None = None,
    class_weight_C: Tensor | None = None,
) -> Taken:
    """Take one step, without waiting for the device: whoever goes on must look at the losses first or soon.

    Args:
        learner: What is trained.
        bags: All training bags.
        step: The group's step.
        config: The configuration, with the loss weights of this step.
        group: The workers.
        rate: Share of the peak learning rate.
        batch: This worker's share, if it is loaded already.
        class_weight_C: What a slide of each class weighs; None: 1.
    """
    num_slides, num_mixed = len(step.bags), len(step.mixed_bag)
    num_bags = num_slides + bool(config.losses.bag and config.bags.mixed_bag_loss and num_mixed)
    aim = Aim(config, Totals(num_slides, num_bags, num_mixed), class_weight_C)
    batch = batch or load_batch(bags, step, share_of(step, bags, group), config.bags, learner.device)
    learner.optimizer.zero_grad(set_to_none=True)
    values = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=learner.device)
    if step.is_giant:
        giant = step.bags[0]
        source, sample = step.source(bags, giant), step.samples.get(giant)
        found = GiantBag(learner, source, sample, label=bags[giant].label or 0, aim=aim, group=group).backward()
        if found:
            values += torch.hstack(aim.weigh(found))
    if batch is not None:
        work, graphs = functools.partial(_packed, learner, aim), learner.graphs
        if graphs is None or step.is_giant:  # a giant bag has left gradients to add to
            numbers = work(batch)
        else:
            constants = (aim.totals, *(getattr(config.losses, name) for name in LOSSES))
            numbers = graphs.run(work, batch, learner.parameters, constants)
        if numbers is not None:
            values += numbers
    group.sum_gradients(learner.parameters)
    norm = nn.utils.clip_grad_norm_(learner.parameters, config.training.clip_norm)
    learner.step(rate=rate)
    numbers = torch.cat([group.sum(values), norm.to(values)[None]]).to("cpu", non_blocking=True)
    is_there = torch.cuda.current_stream(learner.device).record_event() if learner.device.type == "cuda" else None
    return Taken(numbers, is_there, bags, step)


def _packed(learner: Learner, aim: Aim, batch: Batch) -> Tensor | None:
    """Add the gradients of a worker's share and return each loss and their weighted sum; None if there is no loss."""
    with learner.autocast():
        found = packed_losses(learner.head, learner.embed(batch.patches), batch, aim)
    if not found:
        return None
    each_L, loss = aim.weigh(found)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.hstack([each_L, loss]).detach()


def share_of(step: Step, bags: Sequence[Bag], group: Group) -> list[int]:
    """Return what this worker takes whole of a step."""
    return step.share(group.rank, group.size, {i: len(bags[i]) for i in step.bags})


def packed_losses(head: Network, embedding_TE: Rows, batch: Batch, aim: Aim) -> dict[str, Tensor]:
    """Return each active loss of a worker's share, unweighted, divided by the group's totals."""
    feature_TF, attention_T = head(embedding_TE)
    weights, num_slides, num_mixed = aim.config.losses, len(batch.label_B), len(batch.target_NC)
    found = {}
    if weights.bag and (num_slides or aim.config.bags.mixed_bag_loss):
        found["bag"] = bag_losses(head, feature_TF, attention_T, batch, aim)
    # One choice of all single patches: each would come back as a gradient of the size of all features.
    nothing = batch.layout.bag_T.new_empty(0)
    chosen, bag_K = nothing, nothing
    if num_slides and weights.topk:
        chosen, bag_K = top_k_patches(attention_T, batch.layout.bag_T, batch.top_k), batch.top_k.bag_K
    first, stop = len(feature_TF) - num_mixed, len(feature_TF)
    single = torch.cat([chosen, torch.arange(first, stop, device=nothing.device)])
    sizes = [len(chosen), num_mixed]
    feature_KF, feature_NF = feature_TF.index_select(0, single).split(sizes)  # indexing would sort on its way back
    attention_K, attention_N = attention_T.index_select(0, single).split(sizes)
    if len(chosen):
        found["topk"] = topk_losses(head, feature_KF, attention_K, bag_K=bag_K, label_B=batch.label_B, aim=aim)
    if len(batch.target_NC):
        found |= mixed_losses(head, feature_NF, attention_N, batch.target_NC, aim)
    return found


def bag_losses(head: Network, feature_TF: Tensor, attention_T: Tensor, batch: Batch, aim: Aim) -> Tensor:
    """Return L2 of packed bags: on their vectors, or on each of their patches, where the network learns so.

    The mixed bag comes last, and counts if ``bags.mixed_bag_loss`` is set.
    """
    layout, label_B = batch.layout, batch.label_B
    if head.bag_loss_on_patches:
        cut = batch.num_slide_patches
        bag_T = layout.bag_T[:cut]
        logits_TC = head.patch_logits(feature_TF[:cut], attention_T[:cut])
        loss_T = cross_entropy(logits_TC, label_B[bag_T], reduction="none")
        total_B = loss_T.new_zeros(len(label_B)).index_add(0, bag_T, loss_T)
        length_B = torch.zeros_like(total_B).index_add(0, bag_T, torch.ones_like(loss_T))
        return aim.of_bags(total_B / length_B, label_B)
    logits_BC = head.bag_logits(feature_TF, attention_T, layout)
    logits_SC = logits_BC[: len(label_B)]
    loss = aim.of_bags(losses.bag_loss(logits_SC, label_B), label_B) if len(label_B) else logits_BC.new_zeros(())
    if aim.config.bags.mixed_bag_loss and len(batch.target_NC):
        loss = loss + losses.mixed_bag_loss(logits_BC[-1], is_positive=batch.has_target) / aim.totals.num_bags
    return loss


def topk_losses(
    head: Network, feature_KF: Tensor, attention_K: Tensor, *, bag_K: Tensor, label_B: Tensor, aim: Aim
) -> Tensor:
    """Return L3 of the top-K patches of bags."""
    if aim.config.model.topk_detach:
        feature_KF, attention_K = feature_KF.detach(), attention_K.detach()
    logits_KC = head.topk_logits(feature_KF, attention_K)
    return aim.of_slides(losses.topk_loss(logits_KC, bag_K, label_B), label_B)


def mixed_losses(
    head: Network, feature_NF: Tensor, attention_N: Tensor, target_NC: Tensor, aim: Aim
) -> dict[str, Tensor]:
    """Return the active losses of the mixed bag's patches: L1 and L4."""
    weights, totals, found = aim.config.losses, aim.totals, {}
    positive_N = 1 - target_NC[:, 0]
    logits_NC = head.patch_logits(feature_NF, attention_N)
    if weights.patch:
        found["patch"] = losses.patch_loss(logits_NC, target_NC).sum() / totals.num_mixed
    if weights.attention:
        found["attention"] = losses.attention_loss(attention_N, logits_NC, positive_N).sum() / totals.num_mixed
    return found


class GiantBag:
    """This worker's part in the losses of a bag that does not pass at once."""

    def __init__(
        self, learner: Learner, source: PatchSource, sample: Indices | None, *, label: int, aim: Aim, group: Group
    ) -> None:
        self._learner, self._source, self._aim, self._group = learner, source, aim, group
        self._count = len(source) if sample is None else len(sample)
        self._label_B = torch.tensor([label], device=learner.device)
        start, stop = group.piece(self._count)
        cuts = np.linspace(start, stop, num=math.ceil((stop - start) / aim.config.bags.patches_per_step) + 1)
        edges = cuts.round().astype(int).tolist()
        spans = list(itertools.pairwise(edges))
        self._start, self._spans = start, spans
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
            part, attention_T = self._survey()
        if is_pooled:
            found["bag"] = self._pooled(part)
        elif weights.bag:
            found["bag"] = self._each_patch()
        if weights.topk:
            found["topk"] = self._topk(attention_T)
        return found

    def _forward(self, index: int, patches: Rows) -> tuple[Tensor, Tensor]:
        """Pass one chunk; a second time with the same dropout."""
        learner = self._learner
        seed = self._aim.config.training.seed
        with learner.seeded(seed, self._group.rank, index), learner.autocast():
            feature_TF, attention_T = learner.head(learner.embed(patches), self._scale_E)
        return feature_TF, attention_T

    def _chunks(self) -> "enumerate[Rows]":
        device = self._learner.device
        return enumerate(load_ahead(lambda piece: pack([(self._source, piece)], device), self._pieces, device))

    def _survey(self) -> tuple[PooledPart, Tensor]:
        """Return the whole bag's pooled part, and the attention of this worker's patches."""
        head, part, scores = self._learner.head, None, []
        with torch.no_grad():
            for index, patches in self._chunks():
                feature_TF, attention_T = self._forward(index, patches)
                mine = head.pool_part(feature_TF, attention_T, self._one_bag(attention_T), num_bags=1)
                part = mine if part is None else part.merge(mine, head.pooling)
                scores.append(widen(attention_T))
        device = self._learner.device
        parts = [found.to(device) for found in self._group.gather(part and part.to("cpu")) if found is not None]
        whole = functools.reduce(lambda one, other: one.merge(other, head.pooling), parts)
        return whole, torch.cat(scores) if scores else torch.empty(0, device=device)

    def _pooled(self, part: PooledPart) -> Tensor:
        """Send the bag loss back through every chunk."""
        head, aim = self._learner.head, self._aim
        vector_BF = part.vectors().detach().requires_grad_()
        loss = aim.of_bags(losses.bag_loss(head.pooled_logits(vector_BF), self._label_B), self._label_B)
        is_first = self._group.rank == 0  # the classifier's own gradient counts once
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
        k = top_k_size(self._count, aim.config.bags.top_k)
        best = attention_T.argsort(descending=True, stable=True)[:k].cpu()
        mine = list(zip((-attention_T.cpu()[best]).tolist(), (best + self._start).tolist(), strict=True))
        chosen = sorted(found for part in self._group.gather(mine) for found in part)[:k]
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
