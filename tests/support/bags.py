"""Small random bags for the tests of bags, engine and scoring."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from distmil.bags.bag import Bag
from distmil.bags.sampler import Step, StepPlanner
from distmil.bags.source import EmbeddingSource
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.models.regions import Places

EMBEDDING = 12


def make_bag(index: int, *, classes: int = 2, annotated: bool = True, size: int | None = None) -> Bag:
    """A bag whose target patches are shifted; odd slides are positive."""
    generator = np.random.default_rng(index)
    count = size or int(generator.integers(12, 60))
    label = index % classes
    z = generator.normal(size=(count, EMBEDDING)).astype(np.float16)
    label_N = np.zeros(count, np.int8)
    if label:
        hits = max(1, count // 8)
        z[:hits, label] += 3
        label_N[:hits] = label
        if not annotated:
            label_N[:] = -1
    target_NC = np.full((count, classes), np.nan, np.float32)
    target_NC[label_N >= 0] = np.eye(classes, dtype=np.float32)[label_N[label_N >= 0]]
    half = count // 2
    column_N, row_N = np.arange(count, dtype=np.int32) % 7, np.arange(count, dtype=np.int32) // 7
    places = Places(column_N * 96, row_N * 96, 96)
    return Bag(f"slide-{index:02d}", label, EmbeddingSource([z[:half], z[half:]]), label_N, target_NC, places=places)


def make_bags(count: int, **options: Any) -> list[Bag]:
    return [make_bag(i, **options) for i in range(count)]


def small_config(**sections: dict[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {
        "encoder": {"name": "texture"},
        "model": {"feature_dim": 16, "attention_dim": 8, "dropout": 0.0, "input_dropout": 0.0},
        "bags": {"k_positive": 6, "k_negative": 10, "n": 16, "slides_per_step": 4},
        "training": {"epochs": 4, "warmup_steps": 2, "lr": 1e-2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build_config(values)


def steps_of(planner: StepPlanner, epoch: int, *, with_mixed: bool) -> Iterator[Step]:
    """Yield the steps of an epoch, as the engine draws them."""
    for number, slides in enumerate(planner.slides(epoch)):
        yield planner.step(epoch, number, slides, with_mixed=with_mixed)
