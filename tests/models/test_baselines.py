"""The networks behind one interface: what each answers, learns from and trains."""

import pytest
import torch
from torch import Tensor

from distmil.errors import TrainingError
from distmil.models.baselines import NETWORKS, make_network
from distmil.models.layout import BagLayout
from distmil.models.pooling import pool
from distmil.training.engine import active_config, class_weights, evaluate, ramped, train_epoch
from distmil.training.step import take_step
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bags, small_config, steps_of
from tests.training.test_engine import make

ALONE = Workers()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_learns_what_its_labels_carry(name: str) -> None:
    bags = make_bags(40)
    config = small_config(model={"name": name}, training={"epochs": 25})
    learner, planner = make(config, bags[:28])
    config, notes = active_config(config, planner)
    assert bool(notes) == (name != "dual")
    for epoch in range(25):
        train_epoch(learner, bags[:28], planner, config, epoch=epoch, workers=ALONE)
    found = evaluate(learner, bags[28:], config, workers=ALONE)
    assert (found["slide_auc"] or 0) > 0.75, found  # chance has a standard deviation of 0.17 here
    if name != "max":  # it sees one patch a bag, and may settle on another
        assert (found["patch_auc_probability"] or 0) > 0.8, found


def answers(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features T x F, attention T and the vector of one bag."""
    torch.manual_seed(0)
    head = make_network(small_config(model={"name": name}).model, embedding_dim=EMBEDDING, num_classes=3).eval()
    with torch.no_grad():
        feature_TF, attention_T = head(torch.randn(30, EMBEDDING))
        layout = BagLayout.of([30])
        vector_F = pool(feature_TF, attention_T, layout, head.pooling)[0]
        torch.testing.assert_close(head.bag_logits(feature_TF, attention_T, layout)[0], head.classifier(vector_F))
    return feature_TF, attention_T, vector_F


@pytest.mark.parametrize("name", ["attention", "gated_attention"])
def test_attention_mil_weighs_by_softmax(name: str) -> None:
    feature_TF, attention_T, vector_F = answers(name)
    torch.testing.assert_close(vector_F, attention_T.softmax(0) @ feature_TF)


@pytest.mark.parametrize("name", ["mean", "instance"])
def test_mean_pooling_weighs_all_alike(name: str) -> None:
    feature_TF, _, vector_F = answers(name)
    torch.testing.assert_close(vector_F, feature_TF.mean(0))


@pytest.mark.parametrize("name", ["max", "patches"])
def test_max_pooling_is_the_highest_patch(name: str) -> None:
    feature_TF, attention_T, vector_F = answers(name)
    torch.testing.assert_close(vector_F, feature_TF[attention_T.argmax()])


def test_a_baseline_whose_only_loss_is_off_is_refused() -> None:
    config = small_config(model={"name": "attention"}, losses={"bag": 0.0})
    _, planner = make(config, make_bags(8))
    with pytest.raises(TrainingError, match=r"no loss is left for model\.name = attention"):
        active_config(config, planner)


def test_weights_of_a_ramp_grow_from_nothing() -> None:
    config = small_config(losses={"attention": 0.5, "ramp": {"attention": 4, "topk": 0}})
    assert [ramped(config, epoch).losses.attention for epoch in (0, 1, 2, 4, 9)] == [0, 0.125, 0.25, 0.5, 0.5]
    assert ramped(config, 0).losses.topk == ramped(config, 0).losses.bag == 1


def test_class_weights_balance_the_classes() -> None:
    bags = [bag for bag in make_bags(16) if not bag.label or bag.slide_id < "slide-04"]  # 8 negative, 2 positive
    _, planner = make(small_config(), bags)
    assert class_weights(small_config(), planner) is None
    weights = class_weights(small_config(losses={"class_weights": "balanced"}), planner)
    assert weights is not None
    assert weights.tolist() == pytest.approx([10 / 16, 10 / 4])


def test_the_average_follows_the_weights_and_is_what_is_judged() -> None:
    bags = make_bags(8)
    config = small_config(training={"ema": 0.9})
    learner, planner = make(config, bags)
    average = learner.averaged
    assert average is not None
    assert learner.eval_model is average
    expected = {name: value.clone() for name, value in average.head.state_dict().items()}
    for count, step in enumerate(steps_of(planner, 0, with_mixed=True), start=1):
        take_step(learner, bags, step, config, ALONE, rate=1.0).losses()
        decay = min(0.9, (1 + count) / (10 + count))
        for name, value in learner.head.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in average.head.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(expected[name], value) for name, value in learner.head.state_dict().items())
    plain, _ = make(small_config(), bags)
    assert plain.eval_model.head is plain.head
