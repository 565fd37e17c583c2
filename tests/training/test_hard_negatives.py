"""Hard negatives: L1 and L4 on the top-K patches of negative slides, against formulas written out here in NumPy."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distmil.bags.bag import Bag
from distmil.bags.sampler import Step
from distmil.bags.source import EmbeddingSource
from distmil.config.root import Config
from distmil.models.network import Network
from distmil.training.step import take_step
from distmil.training.workers import Workers
from tests.support.bags import EMBEDDING, make_bag, small_config
from tests.support.scale import cases
from tests.support.thread_workers import run_as_workers
from tests.training.test_step import still_learner

NOTHING = np.empty(0, np.int64)
CASES = cases(120, full=3000)
BLOCK = 20
Floats = NDArray[np.float64]


def make_case(seed: int) -> tuple[Config, list[Bag], Step, int]:
    """Draw a configuration, five bags of which some are pseudo-labelled, a step of some of them, and the classes."""
    generator = np.random.default_rng([seed, 8])
    classes = int(generator.integers(2, 5))
    is_share = bool(generator.integers(2))
    config = small_config(
        bags={"hard_negatives": True, "patches_per_step": 16,
              "top_k": 1_000_000 if is_share else int(generator.integers(1, 30)),
              "top_k_share": float(generator.random() * 0.5 + 0.01) if is_share else 1.0},
        losses={name: float(generator.random() + 0.1) for name in ("patch", "bag", "topk", "attention")},
        model={name: str(generator.choice(["plain", "attended"])) for name in ("patch_feature", "topk_feature")},
        training={"seed": seed, "clip_norm": 1e6},
    )  # fmt: skip
    bags = [make_bag(int(i), classes=classes, size=int(generator.integers(17, 90))) for i in generator.permutation(9)]
    bags = [replace(bag, is_pseudo=bool(generator.random() < 0.2)) for bag in bags[:5]]
    chosen = generator.permutation(5)[: int(generator.integers(1, 5))].tolist()
    samples = {i: np.sort(generator.permutation(len(bags[i]))[:17]) for i in chosen if generator.integers(2)}
    mixed = generator.integers(0, 5, size=int(generator.integers(20)))
    patches = np.array([int(generator.integers(len(bags[i]))) for i in mixed], np.int64)
    return config, bags, Step(chosen, samples, mixed, patches), classes


def written_out(head: Network, config: Config, bags: list[Bag], step: Step) -> tuple[dict[str, float], int]:
    """Compute L1 and L4 as the configuration says them, one patch after the other; and how many are hard negatives."""
    rows: list[tuple[float, Floats, Floats]] = []
    for i, patch in zip(step.mixed_bag.tolist(), step.mixed_patch.tolist(), strict=True):
        attention_N, logits_NC = scores_of(head, bags[i])
        rows.append((attention_N[patch], logits_NC[patch], bags[i].target_NC[patch].astype(np.float64)))
    num_hard = 0
    for i in step.bags:
        if bags[i].label or bags[i].is_pseudo:
            continue
        seen = step.samples.get(i, np.arange(len(bags[i])))
        attention_N, logits_NC = (values[seen] for values in scores_of(head, bags[i]))
        k = max(1, min(config.bags.top_k, int(np.ceil(config.bags.top_k_share * len(seen) - 1e-6))))
        normal = np.eye(logits_NC.shape[1])[0]
        rows += [(attention_N[n], logits_NC[n], normal) for n in np.argsort(-attention_N, kind="stable")[:k]]
        num_hard += k
    patch, attention = [], []
    for score, logits_C, target_C in rows:
        share_C = np.exp(logits_C) / np.exp(logits_C).sum()
        patch.append(-(target_C * np.log(share_C)).sum())
        q, positive = (1 - share_C[0]) / (1 + np.exp(-score)), 1 - target_C[0]
        attention.append(-positive * np.log(q) - (1 - positive) * np.log(1 - q))
    return {"patch": float(np.mean(patch)), "attention": float(np.mean(attention))} if rows else {}, num_hard


def scores_of(head: Network, bag: Bag) -> tuple[Floats, Floats]:
    with torch.no_grad():
        feature_TF, attention_T = head(torch.from_numpy(np.array(bag.source.take(slice(None)))).double())
        logits_TC = head.patch_logits(feature_TF, attention_T)
    return attention_T.numpy(), logits_TC.numpy()


def outcome(
    config: Config, bags: list[Bag], step: Step, workers: Workers, *, classes: int
) -> tuple[dict[str, float], Any]:
    learner = still_learner(config, classes=classes, dtype=torch.float64)
    found = take_step(learner, bags, step, config, workers, rate=1.0).losses()
    return found, torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                             for p in learner.head.parameters()])  # fmt: skip


def assert_same(one: tuple[dict[str, float], Any], other: tuple[dict[str, float], Any]) -> None:
    assert other[0] == pytest.approx(one[0], rel=1e-10, abs=1e-12)
    assert float((other[1] - one[1]).abs().max()) <= 1e-10 * float(one[1].abs().max())


@pytest.mark.parametrize("block", range(CASES // BLOCK))
def test_the_losses_are_those_written_out_packed_in_chunks_and_over_workers(block: int) -> None:
    for seed in range(BLOCK * block, BLOCK * (block + 1)):
        config, bags, step, classes = make_case(seed)
        head = still_learner(config, classes=classes, dtype=torch.float64).head
        one_pass = outcome(config, bags, step, Workers(), classes=classes)
        expected, num_hard = written_out(head, config, bags, step)
        assert step.count_hard(bags, config.bags) == num_hard
        assert {name: one_pass[0][name] for name in expected} == pytest.approx(expected, rel=1e-9)
        for result in run_as_workers(1 + seed % 3, partial(outcome, config, bags, step, classes=classes)):
            assert_same(one_pass, result)
        alone = replace(step, bags=step.bags[:1])
        one_pass = outcome(config, bags, alone, Workers(), classes=classes)
        in_chunks = partial(outcome, config, bags, replace(alone, is_chunked=True), classes=classes)
        for result in run_as_workers(1 + seed % 3, in_chunks):
            assert_same(one_pass, result)


@pytest.mark.parametrize("seed", range(cases(30, full=300)))
def test_gradients_follow_the_losses(seed: int) -> None:
    """The gradient along a random direction is the difference of the losses; so small a move changes no top-K."""
    config, bags, step, classes = make_case(seed)
    learner = still_learner(config, classes=classes, dtype=torch.float64)
    _, gradient = outcome(config, bags, step, Workers(), classes=classes)
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in learner.head.parameters()]
    values = []
    for side in (1e-7, -1e-7):
        moved = still_learner(config, classes=classes, dtype=torch.float64)
        with torch.no_grad():
            for parameter, direction in zip(moved.head.parameters(), directions, strict=True):
                parameter.add_(direction, alpha=side)
        values.append(take_step(moved, bags, step, config, Workers(), rate=1.0).losses()["loss"])
    slope = float(gradient @ torch.cat([direction.flatten() for direction in directions]))
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_only_slides_that_a_person_called_negative_give_hard_negatives() -> None:
    bags = [make_bag(i, size=40) for i in range(2)]
    config = small_config(bags={"hard_negatives": True, "top_k": 3})
    others = [replace(bags[0], is_pseudo=True), replace(bags[0], label=None), bags[1]]
    everything = [bags[0], *others]
    assert Step([0, 1, 2, 3], {}, NOTHING, NOTHING).count_hard(everything, config.bags) == 3
    plain = small_config(bags={"top_k": 3})
    step = Step([0, 1, 2], {}, np.array([0, 1]), np.array([5, 0]))
    with_them, without = (outcome(one, others, step, Workers(), classes=2) for one in (config, plain))
    assert_same(with_them, without)
    assert Step([0], {}, NOTHING, NOTHING).count_hard(everything, plain.bags) == 0


@pytest.mark.slow
@pytest.mark.parametrize("label", [0, 1])
def test_a_bag_of_a_million_patches_is_exact_in_chunks_and_over_workers(label: int) -> None:
    """Its top-K patches lie in chunks of several workers; in fp64, so that sums of a million terms can be compared."""
    count = 1_000_000
    generator = np.random.default_rng(label)
    bag = make_bag(label, size=40)
    labels = np.full(count, -1, np.int8)
    big = replace(bag, source=EmbeddingSource([generator.normal(size=(count, EMBEDDING)).astype(np.float16)]),
                  label_N=labels, target_NC=np.full((count, 2), np.nan, np.float32), places=None)  # fmt: skip
    bags = [big, make_bag(1, size=30)]
    step = Step([0], {}, np.array([1, 1]), np.array([0, 20]))
    sections = {"hard_negatives": True, "top_k": 50_000, "top_k_share": 0.01}
    whole = small_config(bags={**sections, "patches_per_step": count}, training={"clip_norm": 1e6})
    cut = small_config(bags={**sections, "patches_per_step": 65_536}, training={"clip_norm": 1e6})
    one_pass = outcome(whole, bags, step, Workers(), classes=2)
    assert step.count_hard(bags, whole.bags) == (10_000 if label == 0 else 0)
    for size in (1, 3):
        in_chunks = partial(outcome, cut, bags, replace(step, is_chunked=True), classes=2)
        for found in run_as_workers(size, in_chunks):
            assert found[0] == pytest.approx(one_pass[0], rel=1e-9)
            assert float((found[1] - one_pass[1]).abs().max()) <= 1e-9 * float(one_pass[1].abs().max())
