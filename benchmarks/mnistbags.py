"""MNIST-bags: bags of digits, positive with at least one 9, learnt end to end by a small trainable encoder.

The rule of Ilse et al. 2018, section 4.2, in the balanced form of the authors' own loader (`mnist_bags_loader.py` of
AMLab-Amsterdam/AttentionDeepMIL): see ``draw_digits``. Run it by `python -m benchmarks.mil_tables mnist`.

T patches, N patches of a bag, E embedding.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.inprocess import spread, train_here
from distmil.bags.bag import Bag
from distmil.bags.source import EmbeddingSource, Indices
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.training.engine import evaluate
from distmil.training.workers import Workers

Sections = dict[str, dict[str, Any]]

TARGET = 9
NUM_TEST = 1000
TEST_SEED = 10_000
SIZES = (50, 100, 200)
ANNOTATED = 0.1
EMBEDDING = 800
WEAK: Sections = {"losses": {"patch": 0.0, "attention": 0.0}}
L2: Sections = {"losses": {"patch": 0.0, "topk": 0.0, "attention": 0.0}}

SETTINGS: Sections = {
    "model": {"feature_dim": 500, "attention_dim": 128, "dropout": 0.25, "input_dropout": 0.25},
    "bags": {"slides_per_step": 4, "k_positive": 8, "k_negative": 24},
    "training": {"lr": 1e-3, "encoder_lr": 1e-3, "weight_decay": 1e-2, "warmup_steps": 20},
}
PASSES = 4000
"""Epochs x training bags: every row takes about 1,000 steps."""
MODELS: dict[str, tuple[Sections, bool]] = {
    "attention (softmax)": ({"model": {"name": "attention"}}, False),
    "gated attention (softmax)": ({"model": {"name": "gated_attention"}}, False),
    "dual, L2": (L2, False),
    "dual, L2 + L3": (WEAK, False),
    "dual, all four losses, 10 % annotated": ({}, True),
}
"""Settings of each row, and whether instance labels of some bags are known to it."""
COLUMNS = ("slide_auc", "patch_auc_attention", "patch_auc_probability", "patch_auc_fused")


class LeNet(nn.Module):
    """Both convolutions of Ilse et al. 2018, table 8: pixels T x 28 x 28 x 1 to T x 800; the rest is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU()
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Return embeddings, T x E, of bytes, T x H x W x 1."""
        pixels = (patches.permute(0, 3, 1, 2).float() / 255 - 0.1307) / 0.3081
        return self.layers(pixels).flatten(1)


def merged(*parts: Sections, **sections: dict[str, Any]) -> Config:
    """Return the configuration of sections laid over one another, the later ones on top."""
    values: Sections = {}
    for part in (*parts, sections):
        for name, section in part.items():
            values[name] = {**values.get(name, {}), **section}
    return build_config(values)


def draw_digits(digits: NDArray[np.uint8], count: int, generator: np.random.Generator) -> list[Indices]:
    """Draw bags as indices of digits, positive and negative ones in turn.

    A bag has round(N(10, 2)) digits, one at least, drawn evenly and with replacement. A positive bag is drawn from all
    digits, again and again until it holds a 9; each digit of a negative bag is drawn from those that are no 9.
    """
    everything, others = np.arange(len(digits)), np.flatnonzero(digits != TARGET)
    bags = []
    for i in range(count):
        size, is_positive = max(1, round(generator.normal(10, 2))), i % 2 == 0
        chosen = generator.choice(everything if is_positive else others, size=size)
        while is_positive and not (digits[chosen] == TARGET).any():
            size = max(1, round(generator.normal(10, 2)))
            chosen = generator.choice(everything, size=size)
        bags.append(chosen)
    return bags


def make_bags(
    pixels: NDArray[np.uint8], digits: NDArray[np.uint8], drawn: Sequence[Indices], *, annotated: float | None
) -> list[Bag]:
    """Return the bags of drawn digits.

    Args:
        pixels: Images, N x 28 x 28.
        digits: What they show.
        drawn: Each bag's images.
        annotated: Share of the positive bags whose instances are known to training, the first ones, rounded up, beside
            those of every negative bag, which its label tells; None: no instance is known.
    """
    num_annotated = 0 if annotated is None else int(np.ceil(annotated * len(drawn) / 2))
    bags = []
    for i, chosen in enumerate(drawn):
        is_target_N = digits[chosen] == TARGET
        is_known = annotated is not None and (not is_target_N.any() or i // 2 < num_annotated)
        label_N = is_target_N.astype(np.int8) if is_known else np.full(len(chosen), -1, np.int8)
        target_NC = np.full((len(chosen), 2), np.nan, np.float32)
        if is_known:
            target_NC = np.eye(2, dtype=np.float32)[label_N]
        source = EmbeddingSource([pixels[chosen][..., None]])
        bags.append(Bag(f"bag-{i:04d}", int(is_target_N.any()), source, label_N, target_NC))
    return bags


def run_once(
    train: Sequence[Bag], test: Sequence[Bag], settings: Sequence[Sections], *, seed: int, normalise: bool = False
) -> dict[str, float]:
    """Train encoder and head on some bags and return the measures of others."""
    config = merged({"training": {"epochs": PASSES // len(train)}}, *settings, training={"seed": seed})
    torch.manual_seed(seed)
    learner, _ = train_here(train, config, embedding_dim=EMBEDDING, encoder=LeNet(), normalise=normalise)
    found = evaluate(learner, test, config, workers=Workers())
    return {name: float(found[name] or 0) for name in (*COLUMNS, "slide_accuracy", "slide_auc_max")}


def measure(
    data: Path, *, models: Sequence[str], seeds: int, done: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a row per seed, number of training bags and model that is not done; the test bags are the same for all."""
    with np.load(data / "mnist" / "mnist.npz") as arrays:
        x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    test = make_bags(x_test, y_test, draw_digits(y_test, NUM_TEST, np.random.default_rng(TEST_SEED)), annotated=1.0)
    known = {(row["seed"], row["size"], row["model"]) for row in done}
    for seed, size, name in itertools.product(range(seeds), SIZES, MODELS):
        if name not in models or (seed, size, name) in known:
            continue
        sections, has_labels = MODELS[name]
        drawn = draw_digits(y_train, size, np.random.default_rng([seed, size]))
        train = make_bags(x_train, y_train, drawn, annotated=ANNOTATED if has_labels else None)
        started = time.monotonic()
        found = run_once(train, test, [SETTINGS, sections], seed=seed)
        seconds = time.monotonic() - started
        print(f"mnist, {size} bags, seed {seed}, {name}: {found['slide_auc']:.3f} in {seconds:.0f} s", flush=True)
        yield {"size": size, "model": name, "seed": seed, "seconds": seconds, **found}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown: mean and standard deviation over seeds."""
    lines = [
        "| training bags | model | bag AUC | instance AUC: attention | probability | fused |",
        "|---|---|---|---|---|---|",
    ]
    for size in dict.fromkeys(row["size"] for row in rows):
        for name in MODELS:
            chosen = [row for row in rows if (row["size"], row["model"]) == (size, name)]
            if not chosen:
                continue
            cells = [spread([row[column] for row in chosen]) for column in COLUMNS]
            lines.append(f"| {size} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
