"""The MIL head against published tables: MUSK1, Fox and Elephant with given folds, and MNIST-bags end to end.

    python -m benchmarks.mil_tables [musk1 fox elephant mnist] --data FOLDER [--repeats 5] [--seeds 5] --out FILE.json

Every network is trained in process by the library's own engine to its last epoch, from one configuration for all
models and data sets that is fixed beforehand: no fold or bag that is scored has a say in it. The figures are in
docs/evidence/mil_tables.md.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import mnistbags
from benchmarks.inprocess import train_here
from benchmarks.mnistbags import Sections, merged
from distmil.bags.bag import Bag
from distmil.bags.source import EmbeddingSource
from distmil.training.engine import evaluate
from distmil.training.workers import Workers

TABLES = ("musk1", "fox", "elephant")
KNOWN = (*TABLES, "mnist")
PUBLISHED = {
    "attention": {"musk1": (0.892, 0.040), "fox": (0.615, 0.043), "elephant": (0.868, 0.022)},
    "gated attention": {"musk1": (0.900, 0.050), "fox": (0.603, 0.029), "elephant": (0.857, 0.027)},
}
"""Accuracy and its standard error. Source: Ilse et al. 2018, table 1."""
SETTINGS: Sections = {
    "model": {"feature_dim": 128, "attention_dim": 64, "dropout": 0.25, "input_dropout": 0.4},
    "bags": {"slides_per_step": 8},
    "training": {"epochs": 40, "lr": 1e-3, "weight_decay": 1e-2, "warmup_steps": 20},
}
MODELS: dict[str, Sections] = {
    "dual, L2": mnistbags.L2,
    "dual, L2 + L3": mnistbags.WEAK,
    "attention (softmax)": {"model": {"name": "attention"}},
    "gated attention (softmax)": {"model": {"name": "gated_attention"}},
    "mean": {"model": {"name": "mean"}},
    "max": {"model": {"name": "max"}},
    "instance": {"model": {"name": "instance"}},
}


def read_bags(path: Path) -> tuple[list[Bag], NDArray[np.bool_]]:
    """Return the bags of a benchmark, no patch label known, and its folds: repeats x folds x bags, True = train."""
    with np.load(path) as arrays:
        features, bag_of, labels, folds = (arrays[name] for name in ("X", "bag", "y", "folds_train_mask"))
    bags = []
    for i, label in enumerate(labels.tolist()):
        source = EmbeddingSource([features[bag_of == i].astype(np.float32)])
        unknown_NC = np.full((len(source), 2), np.nan, np.float32)
        bags.append(Bag(f"bag-{i:03d}", int(label), source, np.full(len(source), -1, np.int8), unknown_NC))
    return bags, folds.astype(bool)


def score_fold(
    bags: Sequence[Bag], is_train: NDArray[np.bool_], settings: Sequence[Sections], *, seed: int
) -> dict[str, float]:
    """Train on a fold's training bags, normaliser included, and return accuracy at 0.5 and AUC of the others."""
    config = merged(*settings, training={"seed": seed})
    train = [bag for bag, inside in zip(bags, is_train, strict=True) if inside]
    test = [bag for bag, inside in zip(bags, is_train, strict=True) if not inside]
    torch.manual_seed(seed)
    learner, _ = train_here(train, config, embedding_dim=train[0].source.take(slice(0, 1)).shape[1])
    found = evaluate(learner, test, config, workers=Workers())
    return {"accuracy": float(found["slide_accuracy"] or 0), "auc": float(found["slide_auc"] or np.nan)}


def measure(path: Path, model: str, *, repeat: int) -> list[dict[str, Any]]:
    """Return a row per fold of one repeat of one data set's folds, for one model."""
    bags, folds = read_bags(path)
    rows, started = [], time.monotonic()
    for fold, is_train in enumerate(folds[repeat]):
        found = score_fold(bags, is_train, [SETTINGS, MODELS[model]], seed=100 * repeat + fold)
        rows.append({"data": path.stem, "model": model, "repeat": repeat, "fold": fold, **found})
    mean = statistics.mean(row["accuracy"] for row in rows)
    print(f"{path.stem}, repeat {repeat}, {model}: {mean:.3f} in {time.monotonic() - started:.0f} s", flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float, int]:
    """Return the mean accuracy, its standard error, the standard deviation of the repeats' means, and their number.

    The standard error is that of one 10-fold cross validation, the deviation of its folds' accuracies over the root of
    their number, as a mean over the repeats.
    """
    by_repeat: dict[int, list[float]] = {}
    for row in rows:
        by_repeat.setdefault(row["repeat"], []).append(row["accuracy"])
    means = [statistics.mean(values) for values in by_repeat.values()]
    errors = [statistics.stdev(values) / len(values) ** 0.5 for values in by_repeat.values()]
    deviation = statistics.stdev(means) if len(means) > 1 else 0.0
    return statistics.mean(means), statistics.mean(errors), deviation, len(means)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown, the published figures last."""
    names = [name for name in TABLES if any(row["data"] == name for row in rows)]
    lines = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for model in [model for model in MODELS if any(row["model"] == model for row in rows)]:
        parts = [[row for row in rows if (row["data"], row["model"]) == (name, model)] for name in names]
        lines.append(f"| {model} | " + " | ".join(cell(part) for part in parts) + " |")
    for model, published in PUBLISHED.items():
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in (published[name] for name in names)]
        lines.append(f"| published: {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(rows: Sequence[dict[str, Any]]) -> str:
    """Return a summary as text: accuracy, standard error, and in brackets the repeats' deviation and number."""
    if not rows:
        return ""
    mean, error, deviation, count = summary(rows)
    return f"{mean:.3f} ± {error:.3f} ({deviation:.3f}, {count})"


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures so far after every part that was measured; what the file of figures holds is taken over.

    Raises:
        SystemExit: If the file was made with other settings.
    """
    settings = {"tables": SETTINGS, "mnist": mnistbags.SETTINGS | {"passes": mnistbags.PASSES}}
    found: dict[str, Any] = {"settings": settings, "tables": [], "mnist": []}
    if options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        sys.exit(f"{options.out} was made with other settings; give another file")
    done = {(row["repeat"], row["data"], row["model"]) for row in found["tables"]}
    for part in itertools.product(range(options.repeats), TABLES, MODELS):
        repeat, name, model = part
        if name in options.names and model in options.models and part not in done:
            found["tables"] += measure(options.data / "mil_benchmarks" / f"{name}.npz", model, repeat=repeat)
            yield found
    seeds = options.seeds if "mnist" in options.names else 0
    for row in mnistbags.measure(options.data, models=options.models, seeds=seeds, done=found["mnist"]):
        found["mnist"].append(row)
        yield found
    yield found


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KNOWN)}; default: all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the 10 folds, at most 5")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of MNIST-bags")
    known = list(dict.fromkeys([*MODELS, *mnistbags.MODELS]))
    parser.add_argument("--models", nargs="*", choices=known, default=known)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of every figure; what it holds is kept")
    options = parser.parse_args()
    if unknown := set(options.names) - set(KNOWN):
        parser.error(f"unknown {', '.join(sorted(unknown))}; choose from {', '.join(KNOWN)}")
    options.names = options.names or list(KNOWN)
    return options


def main() -> None:
    """Measure the chosen data sets, keep every fold's and seed's figures, and print the tables."""
    options = parse()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread")
    found: dict[str, Any] = {}
    for found in run(options):
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["tables"]:
        print(table(found["tables"]))
    if found["mnist"]:
        print(mnistbags.table(found["mnist"]))


if __name__ == "__main__":
    main()
