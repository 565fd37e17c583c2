"""Training in this process by the library's own engine, to the last epoch; and figures over seeds as text."""

import copy
import statistics
from collections.abc import Sequence

import torch
from torch import nn

from distmil.bags.bag import Bag
from distmil.bags.sampler import StepPlanner
from distmil.config.root import Config
from distmil.models.baselines import make_network
from distmil.training.engine import History, active_config, evaluate, train_epoch
from distmil.training.learner import Learner, fit_normaliser, make_learner
from distmil.training.workers import Workers


def train_here(
    bags: Sequence[Bag],
    config: Config,
    *,
    embedding_dim: int,
    encoder: nn.Module | None = None,
    normalise: bool = True,
    judging: Sequence[Bag] = (),
) -> tuple[Learner, Config]:
    """Train a network from scratch and return it, and the configuration with the losses that were active.

    Args:
        bags: Training bags.
        config: The configuration; its seed decides order and draws, torch's own state the initialisation.
        embedding_dim: Width of the embeddings.
        encoder: What makes them from pixels, already initialised; None: the bags hold them.
        normalise: Fit the head's normaliser on the training patches before the first step.
        judging: Bags to judge every epoch on where ``training.patience`` is above 0; the best epoch's weights are kept.
    """
    training = config.training
    planner = StepPlanner(bags, config.bags, num_classes=2, seed=training.seed, epochs=training.epochs)
    config, _ = active_config(config, planner)
    head = make_network(config.model, embedding_dim=embedding_dim, num_classes=2)
    learner = make_learner(config, head, encoder, torch.device("cpu"))
    if normalise:
        fit_normaliser(learner, bags, seed=training.seed, batch_size=4096)
    history, best = History(), None
    for epoch in range(training.epochs):
        row: dict[str, float | None] = dict(train_epoch(learner, bags, planner, config, epoch=epoch, workers=Workers()))
        if judging and training.patience:
            row |= {
                f"val_{name}": value for name, value in evaluate(learner, judging, config, workers=Workers()).items()
            }
            if history.add(row, select_by=training.select_by):
                best = copy.deepcopy(learner.eval_model.head.state_dict())
            if history.is_stale(training.patience):
                break
    if best is not None:
        learner.eval_model.head.load_state_dict(best)
    learner.eval_model.train(False)
    return learner, config


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"
