"""The training loop: exactness, determinism, several workers, and what it refuses."""

import copy
import math
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distmil.bags.bag import Bag
from distmil.bags.sampler import StepPlanner
from distmil.bags.source import EmbeddingSource
from distmil.config.root import Config
from distmil.errors import TrainingError
from distmil.models import losses
from distmil.models.baselines import make_network
from distmil.models.layout import BagLayout, top_k_patches
from distmil.storage.store import Store
from distmil.training.checkpoints import load_checkpoint, save_checkpoint
from distmil.training.engine import History, active_config, evaluate, train_epoch
from distmil.training.learner import Learner, fit_normaliser, learning_rate, make_learner
from distmil.training.step import take_step
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bag, make_bags, small_config, steps_of
from tests.support.metrics import assert_close
from tests.support.thread_workers import run_as_workers

ALONE = Workers()


def make(config: Config, bags: list[Bag], *, classes: int = 2, double: bool = False) -> tuple[Learner, StepPlanner]:
    torch.manual_seed(config.training.seed)
    head = make_network(config.model, embedding_dim=EMBEDDING, num_classes=classes)
    learner = make_learner(config, head, None, torch.device("cpu"))
    fit_normaliser(learner, bags, seed=0, batch_size=64)
    if double:
        learner.head.double()
    return learner, StepPlanner(bags, config.bags, num_classes=classes, seed=config.training.seed)


@torch.no_grad()
def direct_losses(learner: Learner, bags: list[Bag], step: Any, config: Config) -> dict[str, float]:
    """The step's losses one bag at a time, without packing."""
    head = learner.head
    found = dict.fromkeys(("patch", "bag", "topk", "attention"), 0.0)
    for i in step.bags:
        z = torch.from_numpy(bags[i].source.take(slice(None)).astype(np.float64))
        feature, attention = head(z)
        layout = BagLayout.of([len(z)])
        label = torch.tensor([bags[i].label])
        found["bag"] += float(losses.bag_loss(head.bag_logits(feature, attention, layout), label)) / len(step.bags)
        top_k = layout.top_k(config.bags.top_k)
        chosen = top_k_patches(attention, layout.bag_T, top_k)
        logits = head.topk_logits(feature[chosen], attention[chosen])
        found["topk"] += float(losses.topk_loss(logits, top_k.bag_K, label)) / len(step.bags)
    for b, p in zip(step.mixed_bag, step.mixed_patch, strict=True):
        z = torch.from_numpy(bags[b].source.take(np.array([p])).astype(np.float64))
        feature, attention = head(z)
        logits = head.patch_logits(feature, attention)
        target = torch.from_numpy(bags[b].target_NC[[p]])
        found["patch"] += float(losses.patch_loss(logits, target)) / len(step.mixed_bag)
        found["attention"] += float(losses.attention_loss(attention, logits, 1 - target[:, 0])) / len(step.mixed_bag)
    return found


@pytest.mark.parametrize("patch_feature", ["plain", "attended"])
@pytest.mark.parametrize("topk_feature", ["plain", "attended"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_packed_step_equals_one_bag_at_a_time(
    patch_feature: str, topk_feature: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(model={"patch_feature": patch_feature, "topk_feature": topk_feature})
    bags = make_bags(8, classes=classes)
    learner, planner = make(config, bags, classes=classes, double=True)
    for step in steps_of(planner, 0, with_mixed=True):
        expected = direct_losses(learner, bags, step, config)
        found = take_step(learner, bags, step, config, ALONE, rate=1.0).losses()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_weights_scale_the_total_and_zero_leaves_a_loss_out() -> None:
    bags = make_bags(8)
    config = small_config(losses={"patch": 0.5, "bag": 2.0, "topk": 0.0, "attention": 3.0})
    learner, planner = make(config, bags)
    step = next(steps_of(planner, 0, with_mixed=True))
    before = copy.deepcopy(learner.head.topk_classifier.state_dict())
    found = take_step(learner, bags, step, config, ALONE, rate=1.0).losses()
    assert found["loss"] == pytest.approx(0.5 * found["patch"] + 2 * found["bag"] + 3 * found["attention"])
    assert found["topk"] == 0.0
    for name, value in learner.head.topk_classifier.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("patch", {"phi", "classifier"}),
        ("bag", {"phi", "gates", "score", "classifier"}),
        ("topk", {"phi", "topk_classifier"}),
        ("attention", {"phi", "gates", "score", "classifier"}),
    ],
)
def test_each_loss_alone_trains_what_the_method_says(name: str, trained: set[str]) -> None:
    bags = make_bags(8)
    only = {key: float(key == name) for key in ("patch", "bag", "topk", "attention")}
    config = small_config(losses=only, training={"weight_decay": 0.0})
    learner, planner = make(config, bags)
    before = copy.deepcopy(learner.head.state_dict())
    train_epoch(learner, bags, planner, config, epoch=0, workers=ALONE)
    moved = {
        key.split(".")[0] for key, value in learner.head.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == trained


def test_topk_detach_keeps_the_attention_block_still() -> None:
    bags = make_bags(8)
    config = small_config(
        losses={"patch": 0.0, "bag": 0.0, "topk": 1.0, "attention": 0.0},
        model={"topk_detach": True, "topk_feature": "attended"},
        training={"weight_decay": 0.0},
    )
    learner, planner = make(config, bags)
    before = copy.deepcopy(learner.head.state_dict())
    train_epoch(learner, bags, planner, config, epoch=0, workers=ALONE)
    moved = {
        key.split(".")[0] for key, value in learner.head.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {"topk_classifier"}


def test_the_mixed_bag_counts_as_a_bag_if_wanted() -> None:
    bags = make_bags(8)
    plain, wanted = small_config(), small_config(bags={"mixed_bag_loss": True})
    learner, planner = make(plain, bags)
    step = next(steps_of(planner, 0, with_mixed=True))
    with torch.no_grad():
        z = np.concatenate(
            [bags[b].source.take(np.array([p])) for b, p in zip(step.mixed_bag, step.mixed_patch, strict=True)]
        )
        feature, attention = learner.head(torch.from_numpy(z).float())
        logits = learner.head.bag_logits(feature, attention, BagLayout.of([len(z)]))[0]
        own = float(losses.mixed_bag_loss(logits, is_positive=True))
    other = copy.deepcopy(learner)
    without = take_step(learner, bags, step, plain, ALONE, rate=1.0).losses()
    found = take_step(other, bags, step, wanted, ALONE, rate=1.0).losses()
    count = len(step.bags)
    assert found["bag"] == pytest.approx((count * without["bag"] + own) / (count + 1), rel=1e-5)
    for name in ("patch", "topk", "attention"):  # the top-K loss stays a mean over slides
        assert found[name] == pytest.approx(without[name], rel=1e-6)


def test_training_learns_slides_and_patches() -> None:
    bags = make_bags(40)
    config = small_config(training={"epochs": 25})
    learner, planner = make(config, bags[:28])
    for epoch in range(25):
        train_epoch(learner, bags[:28], planner, config, epoch=epoch, workers=ALONE)
    found = evaluate(learner, bags[28:], config, workers=ALONE)
    assert (found["slide_auc"] or 0) > 0.95
    assert (found["patch_auc_fused"] or 0) > 0.95
    assert (found["slide_auc_regions"] or 0) > 0.95
    assert (found["evidence_slope"] or 0) > 0
    assert found == evaluate(learner, bags[28:], config, workers=ALONE)


def test_soft_targets_train() -> None:
    bags = []
    for bag in make_bags(8):
        target = bag.target_NC.copy()
        target[target[:, 1] == 1] = [0.4, 0.6]
        bags.append(Bag(bag.slide_id, bag.label, bag.source, bag.label_N, target))
    learner, planner = make(small_config(), bags)
    assert planner.num_positive > 0
    found = train_epoch(learner, bags, planner, small_config(), epoch=0, workers=ALONE)
    assert found["patch"] > 0


def test_without_positive_patch_labels_the_patch_losses_switch_off() -> None:
    bags = make_bags(8, annotated=False)
    _, planner = make(small_config(), bags)
    config, notes = active_config(small_config(), planner)
    assert (config.losses.patch, config.losses.attention) == (0, 0)
    assert (config.losses.bag, config.losses.topk) == (1, 1)
    assert "L1 (patch) and L4 (attention) are switched off" in notes[0]
    with pytest.raises(TrainingError, match="no loss is left"):
        active_config(small_config(losses={"bag": 0.0, "topk": 0.0}), planner)


def test_a_loss_that_is_not_finite_names_the_slides() -> None:
    bags = make_bags(8)
    learner, planner = make(small_config(), bags)
    bad = bags[3]
    poisoned = EmbeddingSource([np.full((len(bad), EMBEDDING), np.nan, np.float16)])
    bags[3] = Bag(bad.slide_id, bad.label, poisoned, bad.label_N, bad.target_NC)
    with pytest.raises(TrainingError, match=r"the loss is nan in a step on slides .*slide-03"):
        train_epoch(learner, bags, planner, small_config(), epoch=0, workers=ALONE)


def test_a_judged_slide_that_is_not_finite_is_named() -> None:
    bags = make_bags(6)
    learner, _ = make(small_config(), bags)
    z = np.full((9, EMBEDDING), np.nan, np.float16)
    broken = Bag("broken", 1, EmbeddingSource([z]), np.zeros(9, np.int8), np.zeros((9, 2), np.float32))
    with pytest.raises(TrainingError, match="broken: scores are not finite"):
        evaluate(learner, [*bags, broken], small_config(), workers=ALONE)


@pytest.mark.parametrize("at", [0, 2])
def test_a_gradient_that_is_not_finite_ends_the_epoch_and_names_the_step(at: int) -> None:
    bags = make_bags(12)
    config = small_config()
    learner, planner = make(config, bags)
    steps = list(steps_of(planner, 0, with_mixed=True))
    assert len(steps) == 3
    factors = iter([torch.inf if i == at else 1.0 for i in range(3)])
    learner.head.classifier.weight.register_hook(lambda gradient: gradient * next(factors))
    involved = sorted({bags[i].slide_id for i in (*steps[at].bags, *steps[at].mixed_bag.tolist())})
    where = rf"the gradient.s norm is (inf|nan) in a step on slides {', '.join(involved)};"
    with pytest.raises(TrainingError, match=where):
        train_epoch(learner, bags, planner, config, epoch=0, workers=ALONE)


def test_slides_that_no_loss_looks_at_are_not_read() -> None:
    config = small_config(losses={"bag": 0.0, "topk": 0.0})
    bags = make_bags(6)
    learner, planner = make(config, bags)
    widths = []
    learner.head.register_forward_hook(lambda _head, _given, found: widths.append(len(found[0])))
    train_epoch(learner, bags, planner, config, epoch=0, workers=ALONE)
    assert widths == [16, 16]  # the mixed bags alone


def test_a_normaliser_refuses_what_is_not_finite() -> None:
    bag = make_bag(1)
    z = bag.source.take(slice(None)).copy()
    z[:, 0] = np.inf
    with pytest.raises(TrainingError, match="not finite"):
        make(small_config(), [Bag("s", 1, EmbeddingSource([z]), bag.label_N, bag.target_NC)])


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    bags = make_bags(12)
    config = small_config(model={"dropout": 0.3, "input_dropout": 0.2})
    store = Store(str(tmp_path))

    unbroken, planner = make(config, bags)
    rows = [train_epoch(unbroken, bags, planner, config, epoch=e, workers=ALONE) for e in range(4)]

    first, planner = make(config, bags)
    history = History()
    for epoch in range(2):
        row = train_epoch(first, bags, planner, config, epoch=epoch, workers=ALONE)
        save_checkpoint(store, "run", first, history, is_best=history.add(dict(row), select_by="loss"))
    second, planner = make(config, bags)
    restored = load_checkpoint(store, "run", second)
    assert restored is not None
    assert restored.rows == history.rows
    resumed = [train_epoch(second, bags, planner, config, epoch=e, workers=ALONE) for e in (2, 3)]
    assert resumed == rows[2:]
    for name, value in unbroken.head.state_dict().items():
        assert torch.equal(value, second.head.state_dict()[name]), name


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = small_config(training={"epochs": 10, "warmup_steps": 4})
    learner, _ = make(config, make_bags(4))
    rates = []
    for step in range(40):
        rates.append(learning_rate(config, step / 4, learner))
        learner.steps_done += 1
    assert rates[:4] == sorted(rates[:4])
    assert max(rates) <= 1
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    config = small_config(training={"epochs": 10, "warmup_steps": 4, "schedule": "constant"})
    learner, _ = make(config, make_bags(4))
    rates = []
    for step in range(40):
        rates.append(learning_rate(config, step / 4, learner))
        learner.steps_done += 1
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rates[5:]) == {1.0}


def test_history_finds_the_best_epoch_and_breaks_ties_by_loss() -> None:
    history = History()
    for auc, loss in ((0.5, 0.9), (1.0, 0.8), (1.0, 0.5), (1.0, 0.6)):
        history.add({"val_slide_auc": auc, "val_slide_loss": loss}, select_by="slide_auc")
    assert history.best_epoch == 2
    assert not history.is_stale(0)
    assert not history.is_stale(2)
    assert history.is_stale(1)


def test_a_metric_that_is_not_known_falls_back_to_the_loss() -> None:
    history = History()
    for loss in (0.9, 0.4, 0.6):
        history.add({"val_slide_auc": None, "val_slide_loss": loss}, select_by="slide_auc")
    assert history.best_epoch == 1


def test_without_a_val_split_the_training_loss_counts() -> None:
    history = History()
    for loss in (0.9, 0.4, 0.6):
        history.add({"loss": loss}, select_by="slide_auc")
    assert history.best_epoch == 1


def test_pseudo_labelled_slides_are_not_judged() -> None:
    bags = make_bags(10)
    learner, _ = make(small_config(), bags)
    pseudo = [Bag(b.slide_id, b.label, b.source, b.label_N, b.target_NC, is_pseudo=True) for b in bags]
    assert evaluate(learner, pseudo, small_config(), workers=ALONE) == {}
    assert evaluate(learner, bags + pseudo, small_config(), workers=ALONE) == evaluate(
        learner, bags, small_config(), workers=ALONE
    )


# --- several workers ---------------------------------------------------------------------------------------------


INITIALISING = threading.Lock()


def train_two_epochs(workers: Workers, *, mixed_bag_loss: bool = False, topk: float = 1.0) -> tuple[Any, Any, Any]:
    """Train as one of the workers; return losses, metrics and weights."""
    bags = make_bags(11)
    config = small_config(bags={"slides_per_step": 3, "mixed_bag_loss": mixed_bag_loss}, losses={"topk": topk})
    with INITIALISING:  # threads share torch's generator, processes do not
        learner, planner = make(config, bags, double=True)
    workers.gather(None)  # nobody seeds it again before all are made
    rows = [train_epoch(learner, bags, planner, config, epoch=e, workers=workers) for e in range(2)]
    return rows, evaluate(learner, bags, config, workers=workers), learner.head.state_dict()


def assert_same(results: list[tuple[Any, Any, Any]]) -> None:
    rows, metrics, state = results[0]
    assert all(math.isfinite(row["loss"]) for row in rows)
    for other_rows, other_metrics, other_state in results[1:]:
        for one, other in zip(rows, other_rows, strict=True):
            assert other == pytest.approx(one, rel=1e-9)
        assert_close(other_metrics, metrics, rel=1e-6)
        for name, value in state.items():
            torch.testing.assert_close(other_state[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("setting", [{}, {"mixed_bag_loss": True}, {"topk": 0.0}])
def test_several_workers_give_the_loss_of_one(setting: dict[str, Any]) -> None:
    results = [train_two_epochs(ALONE, **setting)]
    for size in (2, 3, 5):
        results += run_as_workers(size, lambda workers: train_two_epochs(workers, **setting))
    assert_same(results)


def test_a_parameter_that_no_loss_reaches_has_no_gradient_on_any_worker() -> None:
    def work(workers: Workers) -> list[Any]:
        parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), 1.0 + workers.rank)
        if workers.rank == 1:
            parameters[2].grad = torch.full((2,), 5.0)
        workers.sum_gradients(parameters)
        return [None if p.grad is None else p.grad.tolist() for p in parameters]

    assert run_as_workers(2, work) == [[[3.0, 3.0], None, [5.0, 5.0]]] * 2


def train_as_process(rank: int, size: int, folder: str) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=60), rank=rank, world_size=size)
    torch.set_num_threads(1)
    try:
        torch.save(train_two_epochs(Workers.current()), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_of_one(tmp_path: Path) -> None:
    other = mp.get_context("spawn").Process(target=train_as_process, args=(1, 2, str(tmp_path)))
    other.start()
    try:
        train_as_process(0, 2, str(tmp_path))
    finally:
        other.join(60)
    assert other.exitcode == 0
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert_same([train_two_epochs(ALONE, mixed_bag_loss=False), *found])
