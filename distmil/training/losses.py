"""The losses of a worker's share of a step, packed into one pass.

Each worker adds up the losses of its own bags divided by the workers' totals: summed over them, the loss of n
workers is the loss of one.

T patches, B slide bags, N patches of the mixed bag, K top patches, S = K + N single patches, E embedding, F feature,
C classes, L losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from distmil.bags.loader import Batch
from distmil.config.root import Config
from distmil.models import losses
from distmil.models.layout import top_k_patches
from distmil.models.losses import LOSSES
from distmil.models.network import Network


@dataclass(frozen=True)
class LossSettings:
    """Settings of a step's losses: the configuration, the counts over all workers that divide, class weights."""

    config: Config
    num_slides: int
    num_bags: int
    """Slides, and the mixed bag where the bag loss is on it as well."""
    num_mixed: int
    class_weight_C: Tensor | None = None

    def of_slides(self, loss_B: Tensor, label_B: Tensor) -> Tensor:
        """Return the sum of slide losses by class weight, each a share of the workers' mean."""
        if self.class_weight_C is not None:
            loss_B = loss_B * self.class_weight_C.to(loss_B)[label_B]
        return loss_B.sum() / self.num_slides

    def of_bags(self, loss_B: Tensor, label_B: Tensor) -> Tensor:
        """Return the sum of bag losses, where the mixed bag counts as one more."""
        return self.of_slides(loss_B, label_B) * (self.num_slides / self.num_bags)

    def weigh(self, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each loss in the order of LOSSES, 0 where there is none, and their weighted sum."""
        nothing = next(iter(found.values())).new_zeros(())
        loss = torch.stack([getattr(self.config.losses, name) * value for name, value in found.items()]).sum()
        return torch.stack([found.get(name, nothing) for name in LOSSES]), loss


def packed_losses(head: Network, embedding_TE: Tensor, batch: Batch, aim: LossSettings) -> dict[str, Tensor]:
    """Return each active loss of a worker's share, unweighted, divided by the workers' totals."""
    feature_TF, attention_T = head(embedding_TE)
    weights, num_slides, num_mixed = aim.config.losses, len(batch.label_B), len(batch.target_NC)
    found = {}
    nothing = batch.layout.bag_T.new_empty(0)
    chosen, bag_K = nothing, nothing
    if num_slides and weights.topk:
        chosen, bag_K = top_k_patches(attention_T, batch.layout.bag_T, batch.top_k), batch.top_k.bag_K
    first, stop = len(feature_TF) - num_mixed, len(feature_TF)
    single = torch.cat([chosen, torch.arange(first, stop, device=nothing.device)])
    sizes = [len(chosen), num_mixed]
    feature_KF, feature_NF = feature_TF.index_select(0, single).split(sizes)
    attention_K, attention_N = attention_T.index_select(0, single).split(sizes)  # the gradient of indexing would sort
    if weights.bag and (num_slides or aim.config.bags.mixed_bag_loss):
        found["bag"] = bag_losses(head, feature_TF, attention_T, batch, aim)
    if len(chosen):
        found["topk"] = topk_losses(head, feature_KF, attention_K, bag_K=bag_K, label_B=batch.label_B, aim=aim)
    if len(batch.target_NC):
        found |= mixed_losses(head, feature_NF, attention_N, batch.target_NC, aim)
    return found


def bag_losses(head: Network, feature_TF: Tensor, attention_T: Tensor, batch: Batch, aim: LossSettings) -> Tensor:
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
        loss = loss + losses.mixed_bag_loss(logits_BC[-1], is_positive=batch.has_target) / aim.num_bags
    return loss


def topk_losses(
    head: Network, feature_KF: Tensor, attention_K: Tensor, *, bag_K: Tensor, label_B: Tensor, aim: LossSettings
) -> Tensor:
    """Return L3 of the top-K patches of bags."""
    if aim.config.model.topk_detach:
        feature_KF, attention_K = feature_KF.detach(), attention_K.detach()
    logits_KC = head.topk_logits(feature_KF, attention_K)
    return aim.of_slides(losses.topk_loss(logits_KC, bag_K, label_B), label_B)


def mixed_losses(
    head: Network, feature_NF: Tensor, attention_N: Tensor, target_NC: Tensor, aim: LossSettings
) -> dict[str, Tensor]:
    """Return the active losses of the mixed bag's patches: L1 and L4."""
    weights, found = aim.config.losses, {}
    positive_N = 1 - target_NC[:, 0]
    logits_NC = head.patch_logits(feature_NF, attention_N)
    if weights.patch:
        found["patch"] = losses.patch_loss(logits_NC, target_NC).sum() / aim.num_mixed
    if weights.attention:
        found["attention"] = losses.attention_loss(attention_N, logits_NC, positive_N).sum() / aim.num_mixed
    return found
