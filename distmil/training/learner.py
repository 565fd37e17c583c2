"""A network in training: the head, the encoder where that is trained too, the optimiser and the averaged weights.

T patches, E embedding.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmil.bags.bag import Bag
from distmil.config.learning import TrainingConfig
from distmil.config.root import Config
from distmil.encoders.trainable import parameter_groups
from distmil.errors import TrainingError
from distmil.models.network import Network
from distmil.models.tensors import as_tensor
from distmil.training.cuda_graphs import StepGraphs

NORMALISER_PATCHES = 20_000


class Nets(nn.Module):
    """A head, and an encoder where that is trained too."""

    def __init__(self, head: Network, encoder: nn.Module | None) -> None:
        super().__init__()
        self.head, self.encoder = head, encoder

    def follow(self, other: "Nets", *, decay: float) -> None:
        """Move parameters towards another's: mine x decay + theirs x (1 - decay); buffers are copied."""
        with torch.no_grad():
            for mean, value in zip(self.parameters(), other.parameters(), strict=True):
                if value.requires_grad:
                    mean.lerp_(value, 1 - decay)
            for kept, given in zip(self.buffers(), other.buffers(), strict=True):
                kept.copy_(given)


@dataclass
class Learner:
    """A network in training."""

    head: Network
    encoder: nn.Module | None
    optimizer: torch.optim.Optimizer
    device: torch.device
    is_half: bool = False
    """Wide products run in bf16."""
    ema: float = 0.0
    averaged: Nets | None = None
    """Moving average of the weights, where ``ema`` is above 0."""
    steps_done: int = 0
    graphs: StepGraphs | None = None
    """Does a step's work again without the host; on a GPU alone."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def trained(self) -> Nets:
        """Take the networks in training."""
        return Nets(self.head, self.encoder)

    @property
    def eval_model(self) -> Nets:
        """Take the networks that are evaluated and kept: the average, or those in training."""
        return self.averaged or self.trained

    def embed(self, patches: NDArray[Any] | Tensor) -> Tensor:
        """Return embeddings, T x E: the stored ones, or the encoder's of pixels T x H x W x 3."""
        return embed(patches, self.encoder, self.device)

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs in training."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_half)

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self.trained.train(mode)

    def step(self, *, rate: float) -> None:
        """Move the weights at a share of the peak rates, and follow with the average."""
        for options in self.optimizer.param_groups:
            options["lr"] = rate * options["peak_lr"]
        self.optimizer.step()
        self.steps_done += 1
        if self.averaged is not None:
            decay = min(self.ema, (1 + self.steps_done) / (10 + self.steps_done))  # the start is forgotten sooner
            self.averaged.follow(self.trained, decay=decay)

    @contextmanager
    def seeded(self, *values: int) -> Iterator[None]:
        """Draw dropout from a seed of its own, so that a second pass over the same patches drops the same."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(mix_seed(self.steps_done, *values))
            yield


def embed(patches: NDArray[Any] | Tensor, encoder: nn.Module | None, device: torch.device) -> Tensor:
    """Return embeddings, T x E: the stored ones, or an encoder's of pixels T x H x W x 3."""
    if isinstance(patches, np.ndarray):
        patches = as_tensor(patches).to(device)
    if encoder is None:
        return patches
    embedding_TE: Tensor = encoder(patches)
    return embedding_TE


def make_learner(config: Config, head: Network, encoder: nn.Module | None, device: torch.device) -> Learner:
    """Return a learner with AdamW over the head and, at its own rate, the encoder."""
    head, encoder = head.to(device), encoder.to(device) if encoder else None
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": config.training.lr}]
    if encoder is not None:
        groups += parameter_groups(encoder, config.encoder, rate=config.training.encoder_lr)
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.training.weight_decay, fused=True)
    is_half = is_half_precision(config.training, device)
    has_graphs = device.type == "cuda" and config.training.cuda_graphs and not (encoder or head.bag_loss_on_patches)
    graphs = StepGraphs(device) if has_graphs else None
    learner = Learner(head, encoder, optimizer, device, is_half=is_half, ema=config.training.ema, graphs=graphs)
    if learner.ema:
        learner.averaged = copy.deepcopy(learner.trained)
    return learner


def is_half_precision(config: TrainingConfig, device: torch.device) -> bool:
    """Return whether wide products run in bf16."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"


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
            sample += [learner.embed(piece).float().cpu() for piece in pieces]
    embedding_TE = torch.cat(sample)
    if not bool(embedding_TE.isfinite().all()):
        raise TrainingError("training embeddings are not finite; delete the embeddings folder and run embed again")
    for nets in (learner.trained, learner.eval_model):
        nets.head.normaliser.fit(embedding_TE.to(learner.device))


def learning_rate(config: Config, progress: float, learner: Learner) -> float:
    """Return the share of the peak rate: linear warm-up in steps, then a cosine over the epochs, or 1.

    Args:
        config: The configuration.
        progress: Epochs done, with a fraction.
        learner: Its steps done count for the warm-up.
    """
    warm = min(1.0, (learner.steps_done + 1) / (config.training.warmup_steps + 1))
    if config.training.schedule == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress / config.training.epochs)))


def mix_seed(*values: int) -> int:
    """Mix integers into one seed for torch."""
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> np.uint64(1))
