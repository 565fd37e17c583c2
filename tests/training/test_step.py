"""One training step: a chunked bag in chunks and over workers gives what one pass gives."""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distmil.bags.bag import Bag
from distmil.bags.sampler import Step, StepPlanner
from distmil.config.root import Config
from distmil.models.baselines import NETWORKS, make_network
from distmil.training.chunked_bag import ChunkedBag
from distmil.training.learner import Learner, make_learner
from distmil.training.losses import LossSettings
from distmil.training.step import share_of, take_step
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bag, small_config, steps_of
from tests.support.scale import IS_FULL
from tests.support.thread_workers import run_as_workers

NOTHING = np.empty(0, np.int64)


class StillLearner(Learner):
    """Keeps its gradients and does not move."""

    def step(self, *, rate: float) -> None:
        pass


def still_learner(config: Config, *, classes: int, dtype: torch.dtype = torch.float32) -> StillLearner:
    generator = torch.Generator().manual_seed(config.training.seed)
    head = make_network(config.model, embedding_dim=EMBEDDING, num_classes=classes)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        head.normaliser.mean.copy_(0.2 * torch.randn(EMBEDDING, generator=generator))
        head.normaliser.scale.copy_(torch.rand(EMBEDDING, generator=generator) + 0.5)
    learner = make_learner(config, head.to(dtype), None, torch.device("cpu"))
    learner.train()
    return StillLearner(**vars(learner))


def outcome(
    config: Config, bags: Any, step: Step, workers: Workers, *, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, float], Any]:
    learner = still_learner(config, classes=classes, dtype=dtype)
    weights_C = None if config.losses.class_weights == "none" else torch.arange(1, classes + 1) / classes
    found = take_step(learner, bags, step, config, workers, rate=1.0, class_weight_C=weights_C).losses()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learner.head.named_parameters()}
    return found, gradients


def assert_equal(one: tuple[dict[str, float], dict[str, Tensor]], other: Any) -> None:
    """In fp32 within 1e-5 of the largest gradient; in fp64 each parameter within 1e-9 of its own."""
    assert other[0] == pytest.approx(one[0], rel=1e-5, abs=1e-7)
    largest = max(float(g.abs().max()) for g in one[1].values())
    for name, gradient in one[1].items():
        is_wide = gradient.dtype == torch.float64
        scale = 1e-9 * float(gradient.abs().max()) + 1e-13 * largest if is_wide else 1e-5 * largest
        difference = float((gradient - other[1][name]).abs().max())
        assert difference <= scale, (name, difference, scale)


TWO_LEVELS: dict[str, tuple[Any, Any]] = {
    "dtype": (torch.float32, torch.float64),
    "is_sample": (False, True),
    "topk_detach": (False, True),
    "patch_feature": ("plain", "attended"),
    "topk_feature": ("plain", "attended"),
    "class_weights": ("none", "balanced"),
    "has_mixed": (False, True),
    "mixed_bag_loss": (False, True),
    "classes": (2, 3),
    "workers": (2, 3),
}
RUNS = 16
MASKS = sorted(range(1, RUNS), key=lambda mask: (mask.bit_count() % 2 == 0, mask))
"""Columns of an orthogonal array of 16 runs: all pairs of levels of any two factors, all triples of the first eight."""


def designed_cases() -> list[tuple[int, str, dict[str, Any]]]:
    """Every network with every run of the array: a seed, the network's name, and the level of each factor."""
    levels = [
        {
            name: pair[(run & mask).bit_count() % 2]
            for (name, pair), mask in zip(TWO_LEVELS.items(), MASKS, strict=False)
        }
        for run in range(RUNS)
    ]
    return [(RUNS * i + run, name, levels[run]) for i, name in enumerate(NETWORKS) for run in range(RUNS)]


def random_cases() -> list[tuple[int, str, dict[str, Any]]]:
    """A thousand draws of the network, most often the dual one, and of each factor's level."""
    found = []
    for seed in range(1000):
        generator = np.random.default_rng([seed, 1])
        name = list(NETWORKS)[seed % len(NETWORKS)] if seed % 3 else "dual"
        found.append((seed, name, {key: pair[int(generator.integers(2))] for key, pair in TWO_LEVELS.items()}))
    return found


CASES = random_cases() if IS_FULL else designed_cases()
BLOCKS = [CASES[i : i + RUNS] for i in range(0, len(CASES), RUNS)]


@dataclass(frozen=True)
class Case:
    """A configuration, its bags of 17 to 300 patches, a step on one of them, and how it is computed."""

    config: Config
    bags: list[Bag]
    step: Step
    classes: int
    dtype: torch.dtype
    workers: int


def make_case(seed: int, name: str, levels: dict[str, Any]) -> Case:
    """Draw the sizes, the loss weights and the patches of a case."""
    generator = np.random.default_rng(seed)
    learns, classes = NETWORKS[name].losses, levels["classes"]
    config = small_config(
        model={"name": name} | {key: levels[key] for key in ("topk_detach", "patch_feature", "topk_feature")},
        losses={key: float(generator.random() + 0.1) if key in learns else 0.0
                for key in ("patch", "bag", "topk", "attention")}
        | {"class_weights": levels["class_weights"]},
        bags={"top_k": int(generator.integers(1, 12)), "patches_per_step": 16,
              "mixed_bag_loss": name == "dual" and levels["mixed_bag_loss"]},
        training={"seed": seed, "clip_norm": 1e6},
    )  # fmt: skip
    bags = [make_bag(i, classes=classes, size=int(generator.integers(17, 300))) for i in range(4)]
    chunked = int(generator.integers(4))
    samples = {}
    if levels["is_sample"]:
        samples = {chunked: np.sort(generator.choice(len(bags[chunked]), size=17, replace=False))}
    mixed, patches = NOTHING, NOTHING
    if levels["has_mixed"] and learns != {"bag"}:
        mixed = generator.integers(0, 4, size=int(generator.integers(1, 20)))
        patches = np.array([int(generator.integers(len(bags[i]))) for i in mixed], np.int64)
    step = Step([chunked], samples, mixed, patches, is_chunked=True)
    return Case(config, bags, step, classes, levels["dtype"], levels["workers"])


def test_the_design_has_every_pair_of_levels_of_every_network() -> None:
    factors = list(itertools.combinations(TWO_LEVELS, 2))
    wanted = {(a, x, b, y) for a, b in factors for x in TWO_LEVELS[a] for y in TWO_LEVELS[b]}
    for name in NETWORKS:
        levels = [found for _, network, found in designed_cases() if network == name]
        assert {(a, v[a], b, v[b]) for v in levels for a, b in factors} == wanted


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_a_giant_bag_in_chunks_and_over_workers_equals_one_pass(block: int) -> None:
    for drawn in BLOCKS[block]:
        case = make_case(*drawn)
        run = partial(outcome, case.config, case.bags, classes=case.classes, dtype=case.dtype)
        one_pass = run(replace(case.step, is_chunked=False), Workers())
        assert_equal(one_pass, run(case.step, Workers()))
        for result in run_as_workers(case.workers, partial(run, case.step)):
            assert_equal(one_pass, result)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_packed_bags_equal_the_mean_of_single_ones_and_the_mixed_bag(block: int) -> None:
    for drawn in BLOCKS[block]:
        case, seed = make_case(*drawn), drawn[0]
        config, step = case.config, case.step
        config = config.model_copy(update={"bags": config.bags.model_copy(update={"mixed_bag_loss": False})})
        slides = np.random.default_rng(seed).permutation(4)[: 2 + seed % 3].tolist()
        learns = bool(config.losses.bag or config.losses.topk)
        run = partial(outcome, config, case.bags, workers=Workers(), classes=case.classes, dtype=torch.float64)
        packed = run(replace(step, bags=slides if learns else [], samples={}, is_chunked=False))
        parts = [run(Step([i], {}, NOTHING, NOTHING)) for i in slides if learns]
        parts += [run(Step([], {}, step.mixed_bag, step.mixed_patch))] * bool(len(step.mixed_bag))
        shares = [1 / len(slides)] * (len(slides) * learns) + [1.0] * bool(len(step.mixed_bag))
        total = {key: sum(s * found[key] for s, (found, _) in zip(shares, parts, strict=True)) for key in packed[0]}
        gradients = {key: sum(s * g[key] for s, (_, g) in zip(shares, parts, strict=True)) for key in packed[1]}
        if parts:
            assert_equal((total, gradients), packed)


@pytest.mark.parametrize("label", range(3))
def test_a_slide_weighs_what_its_class_weighs(label: int) -> None:
    bags = [make_bag(i, classes=3) for i in range(3)]
    step = Step([label], {}, NOTHING, NOTHING)
    plain, weighted = (
        outcome(small_config(losses={"class_weights": kind}), bags, step, Workers(), classes=3, dtype=torch.float64)
        for kind in ("none", "balanced")
    )
    for name in ("bag", "topk"):
        assert weighted[0][name] == pytest.approx((label + 1) / 3 * plain[0][name])  # see ``outcome``


def test_dropout_falls_alike_in_both_passes_of_a_chunk() -> None:
    config = small_config(model={"dropout": 0.4, "input_dropout": 0.3}, bags={"patches_per_step": 16})
    learner = still_learner(config, classes=2)
    patches = torch.from_numpy(make_bag(1, size=40).source.take(slice(None)))
    with learner.seeded(0, 3):
        first = learner.head(patches)
    with learner.seeded(0, 3):
        second = learner.head(patches)
    with learner.seeded(0, 4):
        third = learner.head(patches)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], third[0])


def test_the_dimensions_that_are_dropped_do_not_depend_on_chunks_or_workers() -> None:
    bags = [make_bag(i, size=60) for i in range(2)]
    step = Step([1], {}, NOTHING, NOTHING, is_chunked=True)
    found = []
    for budget in (16, 25, 1000):
        config = small_config(
            model={"input_dropout": 0.4}, bags={"patches_per_step": budget}, training={"clip_norm": 1e6}
        )
        found.append(outcome(config, bags, step, Workers(), classes=2, dtype=torch.float64))
        learner = still_learner(config, classes=2)  # not in threads, which share torch's generator
        aim = LossSettings(config, 1, 1, 0)
        drawn = [ChunkedBag(learner, bags[1].source, None, label=1, aim=aim, workers=Workers(r, 3)) for r in range(3)]
        assert all(torch.equal(one._scale_E, drawn[0]._scale_E) for one in drawn)
    for other in found[1:]:
        assert_equal(found[0], other)
    plain = small_config(bags={"patches_per_step": 16}, training={"clip_norm": 1e6})
    assert outcome(plain, bags, step, Workers(), classes=2)[0] != pytest.approx(found[0][0])


def test_a_planner_shares_bags_beyond_the_budget_and_samples_only_when_told() -> None:
    config = small_config(bags={"patches_per_step": 64, "slides_per_step": 4})
    bags = [make_bag(0, size=30), make_bag(1, size=200), make_bag(2, size=30)]
    steps = list(steps_of(StepPlanner(bags, config.bags, num_classes=2, seed=0), 0, with_mixed=True))
    chunked = [step for step in steps if step.is_chunked]
    assert [step.bags for step in chunked] == [[1]]
    assert not chunked[0].samples
    assert sorted(i for step in steps for i in step.bags) == [0, 1, 2]
    shares = [share_of(chunked[0], bags, Workers(rank, 2)) for rank in range(2)]
    assert sorted(map(len, shares)) == [0, 1]  # the mixed bag alone
    sampled = small_config(bags={"patches_per_step": 64, "sample": 40})
    steps = list(steps_of(StepPlanner(bags, sampled.bags, num_classes=2, seed=0), 0, with_mixed=False))
    assert not any(step.is_chunked for step in steps)
    assert {i: len(found) for step in steps for i, found in step.samples.items()} == {1: 40}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_bag_is_seen_every_epoch_and_workers_step_alike(workers: int) -> None:
    config = small_config(bags={"patches_per_step": 64, "slides_per_step": 3})
    bags = [make_bag(i, size=size) for i, size in enumerate([10, 300, 12, 64, 65, 20, 33, 9, 100, 17, 41])]
    planner = StepPlanner(bags, config.bags, num_classes=2, seed=1)
    for epoch in range(3):
        steps = list(steps_of(planner, epoch, with_mixed=True))
        assert sorted(i for step in steps for i in step.bags) == list(range(11))
        for step in steps:
            whole = [i for rank in range(workers) for i in share_of(step, bags, Workers(rank, workers)) if i >= 0]
            assert sorted(whole) == ([] if step.is_chunked else sorted(step.bags))
            pieces = [Workers(rank, workers).piece(len(bags[step.bags[0]])) for rank in range(workers)]
            assert [i for a, b in pieces for i in range(a, b)] == list(range(len(bags[step.bags[0]])))


def test_oversampling_decays_and_pairs_balance_each_step() -> None:
    bags = [make_bag(i, annotated=i < 6) for i in range(20)]  # slides 1, 3, 5 are positive and annotated
    config = small_config(bags={"oversample": 3.0, "slides_per_step": 4})
    planner = StepPlanner(bags, config.bags, num_classes=2, seed=0, epochs=5)
    counts = []
    for epoch in range(5):
        seen = [i for step in steps_of(planner, epoch, with_mixed=False) for i in step.bags]
        assert set(seen) == set(range(20))
        counts.append([seen.count(i) for i in (1, 3, 5)])
        assert all(seen.count(i) == 1 for i in range(20) if i not in {1, 3, 5})
    assert [sum(count) for count in counts] == [9, 7, 6, 5, 3]  # 2 extra each, falling to none: 6, 4.5, 3, 1.5, 0
    uneven = [make_bag(2 * i) for i in range(9)] + [make_bag(2 * i + 1) for i in range(4)]
    paired = small_config(bags={"paired": True, "slides_per_step": 4})
    for step in steps_of(StepPlanner(uneven, paired.bags, num_classes=2, seed=0), 0, with_mixed=False):
        labels = [uneven[i].label for i in step.bags]
        assert abs(labels.count(0) - labels.count(1)) <= 1
        assert len(set(step.bags)) == len(step.bags)


def test_half_precision_keeps_scores_and_losses_wide() -> None:
    config = small_config(training={"precision": "bf16"})
    bags = [make_bag(i, size=60) for i in range(4)]
    step = next(steps_of(StepPlanner(bags, config.bags, num_classes=2, seed=0), 0, with_mixed=True))
    learner = still_learner(config, classes=2)
    with learner.autocast():
        feature, attention = learner.head(torch.from_numpy(bags[1].source.take(slice(None))))
        logits = learner.head.patch_logits(feature, attention)
    assert feature.dtype == torch.bfloat16
    assert attention.dtype == logits.dtype == torch.float32
    half = outcome(config, bags, step, Workers(), classes=2)
    full = outcome(small_config(training={"precision": "fp32"}), bags, step, Workers(), classes=2)
    assert half[0] == pytest.approx(full[0], rel=0.03)
    assert half[0] != full[0]
