"""The bags of `pcam_cohort` for benchmarks that train without Ray: annotation budgets, folds inside train, the truth.

The cohort's slides are assembled from PatchCamelyon patches: the seams are artificial, and "normal" is true of a
patch's middle only.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.bags.bag import Bag, open_bag, open_source
from distmil.cohort import read_cohort
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import prepare_encoder
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import prepare
from distmil.storage.store import Store

NUM_FOLDS = 4
Truth = dict[tuple[int, int], int]


@dataclass(frozen=True)
class Cells:
    """The truth of a slide's 96 px cells, and where the bag's patches lie among them; -1 for a cell without a patch."""

    label: NDArray[np.int8]
    patch: NDArray[np.int64]


@dataclass(frozen=True)
class Cohort:
    """Train and val bags, and the truth of each val slide's cells."""

    train: list[Bag]
    val: list[Bag]
    cells: dict[str, Cells]


def cohort_config(data: Path, *, views: int = 0, encoder: Mapping[str, Any] | None = None) -> Config:
    """Return how the cohort is tiled and embedded, by texture unless another encoder is named."""
    return build_config({
        "cohort": {"manifest": str(data / "manifest.csv")},
        "tiling": {"patch_px": 96, "mpp": 0.972},
        "encoder": {"views": views, **(encoder or {"name": "texture"})},
        "tracking": {"uri": "none"},
    })  # fmt: skip


def load_cohort(data: Path, root: Path, *, views: int = 0, encoder: Mapping[str, Any] | None = None) -> Cohort:
    """Open the cohort's bags, tiling, embedding and labelling first what the store does not hold yet."""
    config, store = cohort_config(data, views=views, encoder=encoder), Store(str(root))
    slides = read_cohort(config.cohort, manifest=data / "manifest.csv", needs_labels=True, needs_splits=True).slides
    spec = prepare_encoder(config.encoder, store)
    entries = prepare(Job(config, store), slides, spec, with_labels=True, learns=True).entries
    truth = read_truth(data)
    bags = [open_bag(store, entry, num_classes=2, form="class") for entry in entries]
    cells = {}
    for entry in entries:
        if entry.split == "val":
            _, places = open_source(store, entry)
            row_of = {
                place: i for i, place in enumerate(zip(places["x"].to_pylist(), places["y"].to_pylist(), strict=True))
            }
            own = truth[entry.slide_id]
            cells[entry.slide_id] = Cells(
                np.array(list(own.values()), np.int8), np.array([row_of.get(place, -1) for place in own])
            )
    return Cohort([bag for bag in bags if bag.split == "train"], [bag for bag in bags if bag.split == "val"], cells)


def read_truth(data: Path) -> dict[str, Truth]:
    """Return the true label of every cell, by slide and level-0 corner."""
    truth: dict[str, Truth] = {}
    with (data / "truth.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            truth.setdefault(row["slide_id"], {})[int(row["x"]), int(row["y"])] = int(row["label"])
    return truth


def with_budget(bags: Sequence[Bag], share: float, *, seed: int) -> list[Bag]:
    """Return the bags with the outlines of a share of the positive slides; the others' patches are unknown."""
    positive = [i for i, bag in enumerate(bags) if bag.label]
    count = int(np.ceil(round(share * len(positive), 6)))
    kept = set(np.random.default_rng([seed, 77]).permutation(positive)[:count].tolist())
    return [
        bag if not bag.label or i in kept else replace(
            bag, label_N=np.full_like(bag.label_N, -1), target_NC=np.full_like(bag.target_NC, np.nan)
        )
        for i, bag in enumerate(bags)
    ]  # fmt: skip


def with_fewer_positives(bags: Sequence[Bag], share: float, *, seed: int) -> list[Bag]:
    """Return the bags without some of the positive slides."""
    positive = [i for i, bag in enumerate(bags) if bag.label]
    kept = set(np.random.default_rng([seed, 78]).permutation(positive)[: int(np.ceil(share * len(positive)))].tolist())
    return [bag for i, bag in enumerate(bags) if not bag.label or i in kept]


def folds(bags: Sequence[Bag]) -> list[tuple[list[int], list[int]]]:
    """Return the train and validation indices of each fold, stratified by label; always the same."""
    generator = np.random.default_rng(2024)
    fold_of = np.empty(len(bags), np.int64)
    for label in (0, 1):
        own = generator.permutation([i for i, bag in enumerate(bags) if (bag.label or 0) == label])
        fold_of[own] = np.arange(len(own)) % NUM_FOLDS
    return [
        (np.flatnonzero(fold_of != fold).tolist(), np.flatnonzero(fold_of == fold).tolist())
        for fold in range(NUM_FOLDS)
    ]
