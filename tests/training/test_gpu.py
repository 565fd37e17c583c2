"""On a GPU: the same results as on a CPU, with embeddings resident or streamed."""

import copy

import numpy as np
import pytest
import torch

from distmil.bags.bag import Bag
from distmil.bags.loader import load_ahead, load_batch, make_resident
from distmil.bags.sampler import MIXED, StepPlanner
from distmil.config.learning import BagsConfig
from distmil.config.root import Config
from distmil.errors import TrainingError
from distmil.inference.scoring import BagScores, score_bag
from distmil.models.baselines import NETWORKS, make_network
from distmil.training.engine import evaluate, keep_resident, train_epoch
from distmil.training.learner import Learner, fit_normaliser, make_learner
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bags, small_config, steps_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
ALONE, GPU, CPU, BAGS = Workers(), torch.device("cuda", 0), torch.device("cpu"), BagsConfig()


def make(config: Config, bags: list[Bag], device: torch.device) -> tuple[Learner, StepPlanner]:
    torch.manual_seed(0)
    head = make_network(config.model, embedding_dim=EMBEDDING, num_classes=2)
    learner = make_learner(config, head, None, device)
    fit_normaliser(learner, bags, seed=0, batch_size=64)
    return learner, StepPlanner(bags, config.bags, num_classes=2, seed=0)


def outcome(config: Config, bags: list[Bag], device: torch.device, *, epochs: int) -> tuple[list[float], BagScores]:
    """The losses of some epochs, and a bag's scores after them."""
    learner, planner = make(config, bags, device)
    own = keep_resident(bags, config, device)
    found: list[float] = []
    for epoch in range(epochs):
        found += train_epoch(learner, own, planner, config, epoch=epoch, workers=ALONE).values()
    learner.train(False)
    return found, score_bag(learner.head, bags[1].source, learner.embed, top_k=4)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("patches_per_step", [1_000, 24])
@pytest.mark.parametrize("is_resident", [True, False])
def test_steps_on_a_gpu_are_those_on_a_cpu(name: str, patches_per_step: int, is_resident: bool) -> None:
    training = {"precision": "fp32", "resident": is_resident}
    learns = NETWORKS[name].losses
    weights = {loss: float(loss in learns) for loss in ("patch", "bag", "topk", "attention")}
    config = small_config(model={"name": name}, bags={"patches_per_step": patches_per_step, "sample": 40},
                          losses=weights, training=training)  # fmt: skip
    bags = make_bags(9)
    here, scores_here = outcome(config, bags, CPU, epochs=4)
    there, scores_there = outcome(config, bags, GPU, epochs=4)
    assert there == pytest.approx(here, rel=1e-3, abs=1e-4)
    assert scores_there.bag == pytest.approx(scores_here.bag, rel=1e-3)
    np.testing.assert_allclose(scores_there.probability_N, scores_here.probability_N, rtol=1e-2, atol=1e-3)


def test_replayed_steps_are_those_launched_one_by_one() -> None:
    bags = make_bags(40, size=30)
    found = {}
    for has_graphs in (True, False):
        config = small_config(bags={"patches_per_step": 256, "sample": 25}, model={"dropout": 0.25},
                              training={"cuda_graphs": has_graphs, "precision": "fp32", "epochs": 3})  # fmt: skip
        learner, planner = make(config, bags, GPU)
        own = keep_resident(bags, config, GPU)
        assert (learner.graphs is not None) == has_graphs
        torch.cuda.synchronize()
        found[has_graphs] = [
            train_epoch(learner, own, planner, config, epoch=epoch, workers=ALONE)["loss"] for epoch in range(3)
        ]
        assert learner.graphs is None or learner.graphs.num_recorded == 1  # 120 steps of one size
    assert found[True] == pytest.approx(found[False], rel=0.05)  # the draws of dropout are other ones


def test_batches_are_the_same_resident_and_streamed_while_the_gpu_is_busy() -> None:
    bags = make_bags(12)
    planner = StepPlanner(bags, small_config(bags={"sample": 20}).bags, num_classes=2, seed=0)
    steps = [step for epoch in range(20) for step in steps_of(planner, epoch, with_mixed=True)]
    resident = make_resident(bags, GPU)
    busy = torch.randn(2048, 2048, device=GPU)
    for own in (bags, resident):
        loaded = load_ahead(lambda step, own=own: load_batch(own, step, [*step.bags, MIXED], BAGS, GPU), steps, GPU)
        for step, batch in zip(steps, loaded, strict=True):
            busy = (busy @ busy).tanh()
            expected = load_batch(bags, step, [*step.bags, MIXED], BAGS, CPU)
            assert batch is not None
            assert expected is not None
            assert torch.equal(batch.patches.cpu(), expected.patches)
            assert torch.equal(batch.target_NC.cpu(), expected.target_NC)
            assert torch.equal(batch.layout.bag_T.cpu(), expected.layout.bag_T)


def test_an_epoch_in_half_precision_is_close_and_repeatable() -> None:
    bags = make_bags(20)
    found = {}
    for precision in ("fp32", "bf16", "auto"):
        config = small_config(training={"precision": precision}, model={"dropout": 0.25, "input_dropout": 0.25})
        learner, planner = make(config, bags, GPU)
        assert learner.is_half == (precision != "fp32")
        own = keep_resident(bags, config, GPU)
        found[precision] = [
            train_epoch(learner, own, planner, config, epoch=e, workers=ALONE)["loss"] for e in range(4)
        ]
        assert found[precision][-1] < found[precision][0]
    assert found["auto"] == pytest.approx(found["bf16"], rel=1e-3)
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05)


def test_evaluation_on_a_gpu_is_that_on_a_cpu() -> None:
    bags, config = make_bags(10), small_config()
    learner, _ = make(config, bags, CPU)
    here = evaluate(learner, bags, config, workers=ALONE)
    learner.head, learner.device = copy.deepcopy(learner.head).to(GPU), GPU
    there = evaluate(learner, bags, config, workers=ALONE)
    assert there == pytest.approx(here, rel=1e-4, nan_ok=True)


def test_a_loss_that_is_not_finite_ends_the_epoch() -> None:
    bags, config = make_bags(12), small_config()
    learner, planner = make(config, bags, GPU)
    with torch.no_grad():
        learner.head.classifier.weight.fill_(np.nan)
    with pytest.raises(TrainingError, match="the loss is nan in a step on slides slide-"):
        train_epoch(learner, bags, planner, config, epoch=0, workers=ALONE)
