"""Training under configurations drawn at random: every step's losses are finite, and every loss that is on is felt."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distmil.bags.bag import Bag
from distmil.bags.sampler import StepPlanner
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.errors import TrainingError
from distmil.models.baselines import make_network
from distmil.models.losses import LOSSES
from distmil.training.engine import active_config, class_weights, evaluate, ramped, train_epoch, uses_patch_labels
from distmil.training.learner import fit_normaliser, make_learner
from distmil.training.step import take_step
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bag, steps_of
from tests.support.scale import cases

CPU = torch.device("cpu")


def draw(generator: np.random.Generator) -> tuple[Config, list[Bag]]:
    """Draw a configuration, and a tiny cohort whose slides may lack any kind of label."""

    def one(*values: Any) -> Any:
        return values[generator.integers(len(values))]

    classes = one(2, 2, 3)
    values: dict[str, dict[str, Any]] = {
        "cohort": {"classes": [f"class {i}" for i in range(classes)]},
        "bags": {
            "mixed": one("per_class", "per_slide", "pooled"), "n": one(2, 5, 16), "k_positive": one(1, 6),
            "k_negative": one(1, 10), "top_k": one(1, 3, 100), "top_k_share": one(0.01, 0.1, 1.0),
            "mixed_bag_loss": one(False, True), "slides_per_step": one(1, 2, 5), "patches_per_step": one(16, 64, 1000),
            "sample": one(0, 5), "oversample": one(1.0, 3.0), "paired": one(False, True),
        },
        "model": {
            "name": one(*["dual"] * 6, "attention", "gated_attention", "max", "mean", "instance", "patches"),
            "feature_dim": one(1, 8), "attention_dim": one(1, 4),
            "dropout": one(0.0, 0.5), "input_dropout": one(0.0, 0.5),
            "patch_feature": one("plain", "attended"), "topk_feature": one("plain", "attended"),
            "topk_detach": one(False, True),
        },
        "losses": {name: one(0.0, 1.0, 3.0) for name in LOSSES} | {"class_weights": one("none", "balanced")},
        "labels": {"form": one("class", "fraction")},
        "training": {"epochs": 2, "warmup_steps": 0, "ema": one(0.0, 0.9), "seed": int(generator.integers(1000))},
    }  # fmt: skip
    if not any(values["losses"][name] for name in LOSSES):
        values["losses"]["bag"] = 1.0
    config = build_config(values)
    bags = [_bag(i, classes, config.labels.form, generator) for i in range(int(generator.integers(2, 9)))]
    return config, bags


def _bag(index: int, classes: int, form: str, generator: np.random.Generator) -> Bag:
    bag = make_bag(index, classes=classes, size=int(generator.integers(1, 50)), annotated=generator.random() < 0.7)
    label_N, target_NC = bag.label_N.copy(), bag.target_NC.copy()
    if form == "fraction":
        share = generator.random(len(bag)).astype(np.float32)
        target_NC = np.where(label_N[:, None] > 0, share[:, None] * target_NC, target_NC)
        target_NC[:, 0] = np.where(label_N > 0, 1 - share, target_NC[:, 0])
    hidden = generator.random(len(bag)) < generator.choice([0.0, 0.5, 0.95, 1.0])
    label_N[hidden], target_NC[hidden] = -1, np.nan
    return replace(bag, label_N=label_N, target_NC=target_NC)


@pytest.mark.parametrize("seed", range(cases(150, full=4000)))
def test_training_is_finite_and_every_active_loss_is_felt(seed: int) -> None:
    """At least one step of the first epoch must feel each active loss; no step may be without labelled patches."""
    config, bags = draw(np.random.default_rng(seed))
    planner = StepPlanner(bags, config.bags, num_classes=len(config.cohort.classes), seed=seed, epochs=2)
    try:
        active, _ = active_config(config, planner)
    except TrainingError:
        assert planner.num_positive == 0 or config.model.name != "dual"  # a baseline whose one loss weighs nothing
        return
    torch.manual_seed(seed)
    head = make_network(active.model, embedding_dim=EMBEDDING, num_classes=len(config.cohort.classes))
    learner = make_learner(active, head, None, CPU)
    fit_normaliser(learner, bags, seed=seed, batch_size=64)
    with_mixed = uses_patch_labels(active)
    learner.train()
    felt = dict.fromkeys(LOSSES, 0.0)
    for number, step in enumerate(steps_of(planner, 0, with_mixed=with_mixed)):
        assert not with_mixed or len(step.mixed_bag), number
        weights = class_weights(active, planner)
        config_now = ramped(active, 0.5)
        taken = take_step(learner, bags, step, config_now, Workers(), rate=1.0, class_weight_C=weights)
        for name, value in taken.losses().items():
            assert np.isfinite(value), (number, name, value)
            felt[name] = max(felt.get(name, 0.0), value)
    for name in LOSSES:
        assert (felt[name] > 0) == bool(getattr(active.losses, name)), (name, felt)
    rows = train_epoch(learner, bags, planner, active, epoch=1, workers=Workers())
    assert all(np.isfinite(value) for value in rows.values())
    assert all(
        value is None or np.isfinite(value) for value in evaluate(learner, bags, active, workers=Workers()).values()
    )
