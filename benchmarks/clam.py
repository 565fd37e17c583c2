"""A baseline like CLAM-SB: gated attention and an instance loss on top and bottom patches, from slide labels alone.

Source: Lu et al. 2021, Data-efficient and weakly supervised computational pathology on whole-slide images, with its
defaults: 8 top and 8 bottom patches by attention, which the classifier of the slide's class takes for in and out of
that class, and 0.7 x bag loss + 0.3 x instance loss by cross entropy. Departures: several slides a step, and the
network's own width, dropout, optimiser and schedule.

T patches, B bags, F feature, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from distmil.bags.bag import Bag
from distmil.bags.loader import Batch, load_batch
from distmil.bags.sampler import StepPlanner
from distmil.config.learning import ModelConfig
from distmil.config.root import Config
from distmil.models.baselines import GatedAttentionMIL
from distmil.models.network import exact
from distmil.training.learner import Learner, fit_normaliser, learning_rate, make_learner

NUM_INSTANCES = 8
BAG_WEIGHT = 0.7


class ClamLike(GatedAttentionMIL):
    """Gated attention MIL with an instance classifier, out and in, for each class."""

    def __init__(self, config: ModelConfig, *, embedding_dim: int, num_classes: int) -> None:
        super().__init__(config, embedding_dim=embedding_dim, num_classes=num_classes)
        self.instances = nn.Linear(config.feature_dim, 2 * num_classes)

    def instance_logits(self, feature_TF: Tensor) -> Tensor:
        """Compute the logits of out and in for each class, T x C x 2."""
        return exact(self.instances, feature_TF).unflatten(1, (-1, 2))

    def patch_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute the logits of out and in of the positive class, T x 2: what its maps would show."""
        del attention_T
        return self.instance_logits(feature_TF)[:, 1]


def clam_loss(head: ClamLike, embedding_TE: Tensor, batch: Batch) -> Tensor:
    """Compute the loss of packed slides."""
    feature_TF, attention_T = head(embedding_TE)
    bag = cross_entropy(head.bag_logits(feature_TF, attention_T, batch.layout), batch.label_B)
    losses, start = [], 0
    for label, length in zip(batch.label_B.tolist(), batch.layout.lengths, strict=True):
        order_T = start + attention_T[start : start + length].argsort(descending=True)
        k = min(NUM_INSTANCES, length // 2)
        chosen = torch.cat([order_T[:k], order_T[length - k :]])
        is_in = torch.tensor([1, 0]).repeat_interleave(k)
        losses.append(cross_entropy(head.instance_logits(feature_TF[chosen])[:, label], is_in))
        start += length
    return BAG_WEIGHT * bag + (1 - BAG_WEIGHT) * torch.stack(losses).mean()


def train_clam(bags: Sequence[Bag], config: Config, *, embedding_dim: int) -> Learner:
    """Train to the last epoch, on a CPU; no slide may be larger than a step."""
    planner = StepPlanner(bags, config.bags, num_classes=2, seed=config.training.seed, epochs=config.training.epochs)
    head, device = ClamLike(config.model, embedding_dim=embedding_dim, num_classes=2), torch.device("cpu")
    learner = make_learner(config, head, None, device)
    fit_normaliser(learner, bags, seed=config.training.seed, batch_size=4096)
    for epoch in range(config.training.epochs):
        learner.train()
        slides = planner.slides(epoch)
        for i, chosen in enumerate(slides):
            step = planner.step(epoch, i, chosen, with_mixed=False)
            batch = load_batch(bags, step, step.bags, config.bags, device)
            assert batch is not None
            learner.optimizer.zero_grad(set_to_none=True)
            clam_loss(head, batch.patches, batch).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learner.parameters, config.training.clip_norm)
            learner.step(rate=learning_rate(config, epoch + i / len(slides), learner))
    learner.eval_model.train(False)
    return learner
