"""A training run in progress: the learner, its bags and its history. Torch only.

A worker of a training goes through its epochs, and so does a trial of a search in its own process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distmil.bags.bag import Bag
from distmil.bags.sampler import StepPlanner
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec, load_trainable
from distmil.encoders.trainable import set_trainable
from distmil.models.baselines import make_network
from distmil.storage.store import Store
from distmil.training.checkpoints import load_checkpoint
from distmil.training.engine import History, active_config, evaluate, keep_resident, train_epoch
from distmil.training.learner import Learner, fit_normaliser, make_learner
from distmil.training.workers import Workers


@dataclass
class Run:
    """A learner, its bags and its history."""

    config: Config
    learner: Learner
    planner: StepPlanner
    train_bags: list[Bag]
    validation_bags: list[Bag]
    history: History

    @property
    def is_finished(self) -> bool:
        """Check whether the run has all its epochs, or stopped early."""
        return is_finished(self.history, self.config)

    def advance(self, workers: Workers) -> bool:
        """Train and evaluate an epoch, add its row to the history, and return whether it is the best so far."""
        epoch = len(self.history.rows)
        losses = train_epoch(self.learner, self.train_bags, self.planner, self.config, epoch=epoch, workers=workers)
        row: dict[str, float | None] = {f"loss_{name}" if name != "loss" else name: v for name, v in losses.items()}
        found = evaluate(self.learner, self.validation_bags, self.config, workers=workers)
        row |= {f"val_{name}": value for name, value in found.items()}
        return self.history.add(row, select_by=self.config.training.select_by)


def open_run(
    config: Config,
    train_bags: Sequence[Bag],
    validation_bags: Sequence[Bag],
    spec: EncoderSpec,
    store: Store,
    *,
    name: str | None,
    device: torch.device,
) -> Run:
    """Resume a run from its latest checkpoint, or start it.

    A trainable encoder lowers ``bags.patches_per_step`` to ``encoder.batch_size``.

    Args:
        config: The configuration; losses that the labels do not carry are switched off.
        train_bags: Bags to train on.
        validation_bags: Bags to evaluate on after each epoch.
        spec: The encoder.
        store: Where checkpoints are.
        name: The run's name; None for a run without checkpoints, which starts from scratch.
        device: Where the network is trained.

    Raises:
        TrainingError: If no loss is left.
        StorageError: If a committed checkpoint is damaged.
    """
    training = config.training
    if config.encoder.trainable:  # patches pass through the encoder, too, and what it keeps for its gradient is large
        max_patches = min(config.bags.patches_per_step, config.encoder.patches_per_pass)
        config = config.model_copy(update={"bags": config.bags.model_copy(update={"patches_per_step": max_patches})})
    planner = StepPlanner(
        train_bags, config.bags, num_classes=len(config.cohort.classes), seed=training.seed, epochs=training.epochs
    )
    config, _ = active_config(config, planner)
    learner = new_learner(config, spec, store, device=device)
    history = None if name is None else load_checkpoint(store, name, learner)
    if history is None:
        history = History()
        fit_normaliser(learner, train_bags, seed=training.seed, batch_size=config.encoder.patches_per_pass)
    return Run(config, learner, planner, keep_resident(train_bags, config, device), list(validation_bags), history)


def new_learner(config: Config, spec: EncoderSpec, store: Store, *, device: torch.device) -> Learner:
    """Initialise a learner, alike on every worker."""
    torch.manual_seed(config.training.seed)
    head = make_network(config.model, embedding_dim=spec.dimension, num_classes=len(config.cohort.classes))
    return make_learner(config, head, trained_encoder(config, spec, store), device)


def trained_encoder(config: Config, spec: EncoderSpec, store: Store) -> nn.Module | None:
    """Load the encoder with the part of it ready that is trained; None where none is.

    Raises:
        EncoderError: If the network has no such part.
    """
    if not config.encoder.trainable:
        return None
    encoder = load_trainable(spec, store)
    set_trainable(encoder, config.encoder)
    return encoder


def is_finished(history: History, config: Config) -> bool:
    """Check whether a run has all its epochs, or stopped early."""
    return len(history.rows) >= config.training.epochs or history.is_stale(config.training.patience)
