"""The training loop: one step, one epoch, one evaluation. Torch only.

T patches of the step, B slide bags, N patches of the mixed bag, E embedding, F feature, C classes.

A step is planned for the whole group of workers. Each worker adds up the losses of its own bags divided by the group's
totals, and gradients are summed over the group: the loss of n workers is the loss of one.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from distmil import losses
from distmil.bags import Bag
from distmil.config import Config
from distmil.errors import TrainingError
from distmil.metrics import Judged, judge, summarise
from distmil.models.dual import DualNetwork
from distmil.models.pooling import top_k_patches
from distmil.sampling import MIXED, Step, StepPlanner
from distmil.scoring import SCORE_CHUNK, score_bag

logger = logging.getLogger(__name__)

LOSSES = ("patch", "bag", "topk", "attention")
NORMALISER_PATCHES = 20_000


@dataclass(frozen=True)
class Group:
    """The workers that train together; a group of one does not communicate."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Group":
        """Return this process's place in the torch process group, or a group of one."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the group, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the group in one message; a parameter without one counts as zero."""
        if self.size == 1:
            return
        present = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in present]))
        pieces = torch.split(flat, [p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()


@dataclass
class Learner:
    """A network in training: the head, an encoder where that is trained too, and the optimiser."""

    head: DualNetwork
    encoder: nn.Module | None
    optimizer: torch.optim.Optimizer
    device: torch.device
    steps_done: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def embed(self, patches: NDArray[Any]) -> Tensor:
        """Return embeddings, T x E: the stored ones, or the encoder's of pixels T x H x W x 3."""
        tensor = torch.as_tensor(patches, device=self.device)
        if self.encoder is None:
            return tensor.float()
        embedding_TE: Tensor = self.encoder(tensor)
        return embedding_TE

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self.head.train(mode)
        if self.encoder is not None:
            self.encoder.train(mode)


def make_learner(config: Config, head: DualNetwork, encoder: nn.Module | None, device: torch.device) -> Learner:
    """Return a learner with AdamW over the head and, at its own rate, the encoder."""
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": config.training.lr}]
    if encoder is not None:
        groups.append({"params": list(encoder.parameters()), "lr": config.training.encoder_lr})
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.training.weight_decay)
    return Learner(head.to(device), encoder.to(device) if encoder else None, optimizer, device)


def fit_normaliser(learner: Learner, bags: Sequence[Bag], *, seed: int, batch_size: int) -> None:
    """Fit the head's normaliser on a seeded sample of training patches, the same share of every bag."""
    total = sum(len(bag) for bag in bags)
    share = min(1.0, NORMALISER_PATCHES / total)
    generator = np.random.default_rng([seed, 2**31])
    sample = []
    learner.train(False)
    with torch.no_grad():
        for bag in bags:
            count = max(1, round(share * len(bag)))
            chosen = np.sort(generator.choice(len(bag), size=count, replace=False))
            pieces = [bag.source.take(part) for part in np.array_split(chosen, math.ceil(count / batch_size))]
            sample += [learner.embed(piece).cpu() for piece in pieces]
    embedding_TE = torch.cat(sample)
    if not bool(embedding_TE.isfinite().all()):
        raise TrainingError("training embeddings are not finite; delete the embeddings folder and run embed again")
    learner.head.normaliser.fit(embedding_TE.to(learner.device))


# --- one step ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Totals:
    """What the losses of a step are divided by: counts over the whole group."""

    num_bags: int
    num_mixed: int


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step, packed: slide bags first, then the mixed bag."""

    patches: NDArray[Any]
    offsets: Tensor
    label_B: Tensor
    target_NC: Tensor

    @property
    def num_bag_patches(self) -> int:
        """Return T without the mixed bag."""
        return int(self.offsets[-1])


def load_batch(bags: Sequence[Bag], step: Step, mine: Sequence[int], device: torch.device) -> Batch | None:
    """Read a worker's share of a step; None if it has none."""
    if not mine:
        return None
    whole = slice(None)
    slides = [i for i in mine if i != MIXED]
    pieces = [bags[i].source.take(step.samples.get(i, whole)) for i in slides]
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)])
    target = np.empty((0, bags[0].target_NC.shape[1]), np.float32)
    if MIXED in mine:
        target = np.empty((len(step.mixed_bag), target.shape[1]), np.float32)
        mixed: NDArray[Any] | None = None
        for i in np.unique(step.mixed_bag):
            where = np.flatnonzero(step.mixed_bag == i)
            taken = bags[i].source.take(step.mixed_patch[where])
            mixed = np.empty((len(target), *taken.shape[1:]), taken.dtype) if mixed is None else mixed
            mixed[where], target[where] = taken, bags[i].target_NC[step.mixed_patch[where]]
        assert mixed is not None
        pieces.append(mixed)
    return Batch(
        patches=pieces[0] if len(pieces) == 1 else np.concatenate(pieces),
        offsets=torch.from_numpy(offsets).to(device),
        label_B=torch.tensor([bags[i].label or 0 for i in slides], dtype=torch.int64, device=device),
        target_NC=torch.from_numpy(target).to(device),
    )


def batch_losses(
    head: DualNetwork, embedding_TE: Tensor, batch: Batch, config: Config, totals: Totals
) -> dict[str, Tensor]:
    """Return each active loss of a worker's share, unweighted, divided by the group's totals."""
    feature_TF, attention_T = head(embedding_TE)
    cut = batch.num_bag_patches
    weights, found = config.losses, {}
    if len(batch.label_B):
        bag_feature_TF, bag_attention_T = feature_TF[:cut], attention_T[:cut]
        if weights.bag:
            logits_BC = head.bag_logits(bag_feature_TF, bag_attention_T, batch.offsets)
            found["bag"] = losses.bag_loss(logits_BC, batch.label_B).sum() / totals.num_bags
        if weights.topk:
            chosen, bag_K = top_k_patches(bag_attention_T, batch.offsets, config.bags.top_k)
            top_KF, top_attention_K = bag_feature_TF[chosen], bag_attention_T[chosen]
            if config.model.topk_detach:
                top_KF, top_attention_K = top_KF.detach(), top_attention_K.detach()
            logits_KC = head.topk_logits(top_KF, top_attention_K)
            found["topk"] = losses.topk_loss(logits_KC, bag_K, batch.label_B).sum() / totals.num_bags
    if len(batch.target_NC):
        mixed = mixed_losses(head, feature_TF[cut:], attention_T[cut:], batch.target_NC, config=config, totals=totals)
        if "bag" in mixed and "bag" in found:
            mixed["bag"] = mixed["bag"] + found["bag"]
        found |= mixed
    return found


def mixed_losses(
    head: DualNetwork, feature_NF: Tensor, attention_N: Tensor, target_NC: Tensor, *, config: Config, totals: Totals
) -> dict[str, Tensor]:
    """Return the active losses of the mixed bag: L1, L4, and its own L2 where that is wanted."""
    weights, found = config.losses, {}
    positive_N = 1 - target_NC[:, 0]
    logits_NC = head.patch_logits(feature_NF, attention_N)
    if weights.patch:
        found["patch"] = losses.patch_loss(logits_NC, target_NC).sum() / totals.num_mixed
    if weights.attention:
        found["attention"] = losses.attention_loss(attention_N, logits_NC, positive_N).sum() / totals.num_mixed
    if weights.bag and config.bags.mixed_bag_loss:
        offsets = torch.tensor([0, len(target_NC)], device=target_NC.device)
        logits_C = head.bag_logits(feature_NF, attention_N, offsets)[0]
        is_positive = bool((positive_N > 0).any())
        found["bag"] = losses.mixed_bag_loss(logits_C, is_positive=is_positive) / totals.num_bags
    return found


def train_step(
    learner: Learner, bags: Sequence[Bag], step: Step, config: Config, group: Group, *, rate: float
) -> dict[str, float]:
    """Take one step and return the group's losses, each unweighted, and their weighted sum as ``loss``.

    Raises:
        TrainingError: If the loss is not finite, naming the slides of the step.
    """
    has_mixed = len(step.mixed_bag) > 0
    extra = 1 if config.bags.mixed_bag_loss and has_mixed else 0
    totals = Totals(num_bags=len(step.bags) + extra, num_mixed=len(step.mixed_bag))
    mine = step.share(group.rank, group.size, [len(bag) for bag in bags])
    batch = load_batch(bags, step, mine, learner.device)
    learner.optimizer.zero_grad(set_to_none=True)
    values = torch.zeros(len(LOSSES) + 1, dtype=torch.float64, device=learner.device)
    if batch is not None:
        found = batch_losses(learner.head, learner.embed(batch.patches), batch, config, totals)
        weighted = [getattr(config.losses, name) * value for name, value in found.items()]
        if weighted:
            total = torch.stack(weighted).sum()
            total.backward()  # type: ignore[no-untyped-call]
            values[-1] = total.detach()
        for i, name in enumerate(LOSSES):
            values[i] = found[name].detach() if name in found else 0.0
    numbers = group.sum(values).tolist()
    if not math.isfinite(numbers[-1]):
        involved = sorted({bags[i].slide_id for i in (*step.bags, *step.mixed_bag.tolist())})
        raise TrainingError(
            f"the loss is {numbers[-1]} in a step on slides {', '.join(involved[:20])}"
            f"{' and more' if len(involved) > 20 else ''}; lower training.lr, or look at these slides' embeddings"
        )
    group.sum_gradients(learner.parameters)
    nn.utils.clip_grad_norm_(learner.parameters, config.training.clip_norm)
    for options in learner.optimizer.param_groups:
        options["lr"] = rate * options["peak_lr"]
    learner.optimizer.step()
    learner.steps_done += 1
    return dict(zip([*LOSSES, "loss"], numbers, strict=True))


def train_epoch(
    learner: Learner, bags: Sequence[Bag], planner: StepPlanner, config: Config, *, epoch: int, group: Group
) -> dict[str, float]:
    """Train on every bag once and return the mean losses of the epoch.

    The order, the draws and the dropout follow from ``training.seed`` and the epoch, so that a resumed run is the
    unbroken one.
    """
    torch.manual_seed(_seed(config.training.seed, epoch, group.rank))
    learner.train()
    steps = list(planner.steps(epoch, with_mixed=uses_patch_labels(config)))
    rows = [
        train_step(learner, bags, step, config, group, rate=learning_rate(config, epoch + i / len(steps), learner))
        for i, step in enumerate(steps)
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _seed(*values: int) -> int:
    """Mix integers into one seed for torch."""
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> np.uint64(1))


def learning_rate(config: Config, progress: float, learner: Learner) -> float:
    """Return the share of the peak rate: linear warm-up in steps, then a cosine over the epochs.

    Args:
        config: The configuration.
        progress: Epochs done, with a fraction.
        learner: Its steps done count for the warm-up.
    """
    warm = min(1.0, (learner.steps_done + 1) / (config.training.warmup_steps + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress / config.training.epochs)))


def uses_patch_labels(config: Config) -> bool:
    """Return whether a loss looks at mixed bags."""
    return bool(config.losses.patch or config.losses.attention or (config.losses.bag and config.bags.mixed_bag_loss))


def active_config(config: Config, planner: StepPlanner) -> tuple[Config, list[str]]:
    """Switch off what the labels do not carry, and say so.

    Without any positive patch label L1 and L4 on negatives alone do harm: they push attention to zero everywhere.
    """
    notes = []
    if uses_patch_labels(config) and planner.num_positive == 0:
        weights = config.losses.model_copy(update={"patch": 0.0, "attention": 0.0})
        bags = config.bags.model_copy(update={"mixed_bag_loss": False})
        config = config.model_copy(update={"losses": weights, "bags": bags})
        notes.append("no positive patch label in train: L1 (patch) and L4 (attention) are switched off")
    if not (config.losses.patch or config.losses.bag or config.losses.topk or config.losses.attention):
        raise TrainingError(
            "no loss is left: the cohort has no positive patch label, and losses.bag and losses.topk are 0; "
            "annotate some slides, or set losses.bag=1"
        )
    return config, notes


def evaluate(learner: Learner, bags: Sequence[Bag], config: Config, *, group: Group) -> dict[str, float | None]:
    """Score bags without gradients, each whole, shared over the group, and return the metrics on every worker.

    Pseudo-labelled slides take part in training only: they are not judged.
    """
    learner.train(False)
    judged = [bag for bag in bags if bag.label is not None and not bag.is_pseudo]
    rows = [_judge(learner, bag, config) for bag in judged[group.rank :: group.size]]
    return summarise([row for part in group.gather(rows) for row in part])


def _judge(learner: Learner, bag: Bag, config: Config) -> Judged:
    scores = score_bag(learner.head, bag.source, learner.embed, top_k=config.bags.top_k, chunk=_chunk(config))
    return judge(scores, label=bag.label or 0, label_N=bag.label_N)


def _chunk(config: Config) -> int:
    """Return how many patches go through at once."""
    return config.encoder.batch_size if config.encoder.trainable else SCORE_CHUNK


@dataclass
class History:
    """What a run remembers between epochs, for early stopping and for its checkpoint."""

    rows: list[dict[str, float | None]] = field(default_factory=list)
    best_epoch: int = -1

    def add(self, row: dict[str, float | None], *, select_by: str) -> bool:
        """Take in an epoch's metrics and return whether it is the best so far; ties go to the lower slide loss."""
        self.rows.append(row)
        is_best = self.best_epoch < 0 or self._rank(row, select_by) > self._rank(self.rows[self.best_epoch], select_by)
        if is_best:
            self.best_epoch = len(self.rows) - 1
        return is_best

    def is_stale(self, patience: int) -> bool:
        """Return whether the last ``patience`` epochs brought nothing better."""
        return patience > 0 and len(self.rows) - 1 - self.best_epoch >= patience

    @staticmethod
    def _rank(row: Mapping[str, float | None], select_by: str) -> tuple[float, float]:
        """Return what epochs are compared by; the training loss where nothing was validated."""
        loss = row.get("val_slide_loss", row.get("loss"))
        lower = -math.inf if loss is None else -loss
        value = row.get(f"val_{select_by}")
        return (lower if select_by == "loss" or value is None else value), lower
