"""What each kind of label and each loss brings on real tissue with full patch truth, beside every baseline.

    python -m benchmarks.dual_supervision table  [--seeds 5] [--out FILE.json]
    python -m benchmarks.dual_supervision select [--seeds 2] [--share 0.25] NAME=KEY=VALUE,... ...
    python -m benchmarks.dual_supervision figure --out FILE.json --png FILE.png

``table`` trains on `pcam_cohort`'s train split and scores val once against `truth.csv`, which training never sees; a
cell that tiling dropped as background counts with score 0. Seeds change initialisation, order, draws and which positive
slides are annotated. ``select`` compares settings on four folds inside train and never looks at val. ``figure`` draws a
finished table.
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.inprocess import spread, train_here
from benchmarks.pcambags import Cohort, default_data, folds, load_cohort, with_budget
from distmil.bags import Bag
from distmil.config import Config
from distmil.configfile import build_config
from distmil.learner import Learner
from distmil.metrics import PATCH_SCORES, auc, average_precision
from distmil.scoring import READ_OUTS, BagScores, score_bag

COLUMNS = [
    *(f"{measure}_{score}" for measure in ("patch_auc", "patch_ap") for score in PATCH_SCORES),
    *(f"slide_auc_{name}" for name in READ_OUTS),
    "slide_loss",
]
CHOSEN = {"model.feature_dim": 256, "model.attention_dim": 128, "model.dropout": 0.5}
"""What differs from the defaults in every row of the table: chosen on folds inside train by ``select``."""
WEAK = {"losses.patch": 0.0, "losses.attention": 0.0}


@dataclass(frozen=True)
class Setting:
    """A row of the table: what is overridden, and the share of positive slides with outlines."""

    name: str
    share: float
    overrides: dict[str, Any]


TABLE = [
    Setting("slide labels: L2", 0.0, WEAK | {"losses.topk": 0.0}),
    Setting("slide labels: L2 + L3", 0.0, WEAK),
    *(Setting(f"slide labels: {name}", 0.0, {"model.name": name})
      for name in ("attention", "gated_attention", "mean", "max", "instance")),
    Setting("a quarter: L1 + L2", 0.25, {"losses.topk": 0.0, "losses.attention": 0.0}),
    Setting("a quarter: L1 + L2 + L3", 0.25, {"losses.attention": 0.0}),
    Setting("a quarter: L1 + L2 + L4", 0.25, {"losses.topk": 0.0}),
    *(Setting(f"dual, {share:.0%} annotated", share, {}) for share in (0.1, 0.25, 0.5, 1.0)),
    Setting("patches only, 25% annotated", 0.25, {"model.name": "patches"}),
    Setting("patches only, 100% annotated", 1.0, {"model.name": "patches"}),
]  # fmt: skip


def nest(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return dotted overrides as sections."""
    sections: dict[str, Any] = {}
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def train(bags: Sequence[Bag], config: Config) -> tuple[Learner, Config]:
    """Train to the last epoch in this process."""
    torch.manual_seed(config.training.seed)
    return train_here(bags, config, embedding_dim=bags[0].source.take(slice(0, 1)).shape[1])


def score(learner: Learner, bag: Bag, config: Config) -> BagScores:
    """Score one bag."""
    return score_bag(learner.judging.head, bag.source, learner.embed, top_k=config.bags.top_k)


def measure(
    labels: Sequence[int], scores: Sequence[BagScores], targets: Sequence[Any], patches: Sequence[Any]
) -> dict[str, float]:
    """Return the measures over slides and over their judged patches.

    Args:
        labels: Label of each slide.
        scores: Answers for each slide.
        targets: Per slide, whether each judged cell is target.
        patches: Per slide, the patch of each judged cell, -1 where there is none.
    """
    target = np.concatenate(targets) > 0
    found: dict[str, float | None] = {}
    for name in PATCH_SCORES:
        values = np.concatenate([
            np.where(where >= 0, getattr(one, f"{name}_N")[where], 0.0)
            for one, where in zip(scores, patches, strict=True)
        ])  # fmt: skip
        found |= {f"patch_auc_{name}": auc(target, values), f"patch_ap_{name}": average_precision(target, values)}
    is_positive = np.array(labels) > 0
    for name in READ_OUTS:
        found[f"slide_auc_{name}"] = auc(is_positive, [getattr(one, name) for one in scores])
    right = [one.bag_C[label] for one, label in zip(scores, labels, strict=True)]
    found["slide_loss"] = float(-np.log(np.clip(right, 1e-6, 1)).mean())
    return {name: float("nan") if value is None else value for name, value in found.items()}


def run_on_val(cohort: Cohort, setting: Setting, seed: int) -> dict[str, float]:
    """Train on train and score val against the truth."""
    config = build_config(nest({**CHOSEN, **setting.overrides, "training.seed": seed}))
    started = time.perf_counter()
    learner, config = train(with_budget(cohort.train, setting.share, seed=seed), config)
    seconds = time.perf_counter() - started
    scores = [score(learner, bag, config) for bag in cohort.val]
    cells = [cohort.cells[bag.slide_id] for bag in cohort.val]
    found = measure([bag.label or 0 for bag in cohort.val], scores, [c.label for c in cells], [c.patch for c in cells])
    return found | {"seconds": seconds}


def run_on_folds(cohort: Cohort, setting: Setting, seed: int) -> dict[str, float]:
    """Train on each fold's rest and score all folds together against the outlines of train."""
    config = build_config(nest({**setting.overrides, "training.seed": seed}))
    judged: list[Bag] = []
    scores: list[BagScores] = []
    started = time.perf_counter()
    for learning, judging in folds(cohort.train):
        own = with_budget([cohort.train[i] for i in learning], setting.share, seed=seed)
        learner, active = train(own, config)
        judged += [cohort.train[i] for i in judging]
        scores += [score(learner, cohort.train[i], active) for i in judging]
    patches = [np.arange(len(bag)) for bag in judged]
    found = measure([bag.label or 0 for bag in judged], scores, [bag.label_N for bag in judged], patches)
    return found | {"seconds": time.perf_counter() - started}


_COHORT: list[Cohort] = []


def _start(data: Path, root: Path) -> None:
    torch.set_num_threads(1)
    _COHORT.append(load_cohort(data, root))


def _work(task: tuple[str, Setting, int]) -> tuple[str, int, dict[str, float]]:
    kind, setting, seed = task
    run = run_on_val if kind == "table" else run_on_folds
    return setting.name, seed, run(_COHORT[0], setting, seed)


def run_all(kind: str, settings: Sequence[Setting], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Run every setting with every seed, several at once, and print each row when it is complete."""
    load_cohort(options.data, options.root)  # tiles and embeds once, before the workers look
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print("| | " + " | ".join(COLUMNS) + " | seconds |\n|" + "---|" * (len(COLUMNS) + 2), flush=True)
    tasks = [(kind, setting, seed) for setting in settings for seed in range(options.seeds)]
    found: dict[str, dict[str, list[float]]] = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, initializer=_start, initargs=(options.data, options.root)) as pool:
        for name, _, row in pool.imap(_work, tasks):
            rows = found.setdefault(name, {})
            for column, value in row.items():
                rows.setdefault(column, []).append(value)
            if len(rows["seconds"]) == options.seeds:
                print(f"| {name} | " + " | ".join(spread(rows[column]) for column in [*COLUMNS, "seconds"]) + " |",
                      flush=True)  # fmt: skip
    return found


def parse_settings(texts: Sequence[str], share: float) -> list[Setting]:
    """Return settings from NAME=KEY=VALUE,KEY=VALUE."""
    settings = []
    for text in texts:
        name, _, rest = text.partition("=")
        pairs = [pair.split("=") for pair in rest.split(",") if pair]
        settings.append(Setting(name, share, {key: json.loads(value) for key, value in pairs}))
    return settings


def compare(found: dict[str, dict[str, list[float]]], one: str, other: str, column: str) -> str:
    """Return the difference of two rows paired over seeds: mean, spread, and how many seeds agree."""
    difference = np.array(found[other][column]) - np.array(found[one][column])
    agree = int((difference > 0).sum())
    return f"{difference.mean():+.3f} ± {difference.std(ddof=1):.3f}, {agree} of {len(difference)} seeds"


def print_comparisons(found: dict[str, dict[str, list[float]]]) -> None:
    """Print what the table is asked for, paired over seeds."""
    weak, quarter, full = "slide labels: L2 + L3", "dual, 25% annotated", "dual, 100% annotated"
    for one, other, column in (
        (weak, quarter, "patch_ap_probability"),
        (quarter, full, "patch_ap_probability"),
        (weak, quarter, "patch_auc_attention"),
        ("slide labels: attention", quarter, "slide_auc_bag"),
        ("slide labels: gated_attention", quarter, "slide_auc_bag"),
        ("a quarter: L1 + L2 + L3", quarter, "patch_auc_attention"),
        ("a quarter: L1 + L2 + L3", quarter, "patch_ap_probability"),
    ):
        print(f"{column}: {other} less {one}: {compare(found, one, other, column)}")


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw patch AP and attention's AUC against the share of annotated slides, beside the best baselines."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    shares = ["10%", "25%", "50%", "100%"]
    rows = [found["slide labels: L2 + L3"], *(found[f"dual, {share} annotated"] for share in shares)]
    lines = {"patch_ap": ("patch AP", axes[0]), "patch_auc": ("patch AUC", axes[1])}
    for measure_name, (title, axis) in lines.items():
        for name, colour in zip(PATCH_SCORES, ("tab:orange", "tab:blue", "tab:red"), strict=True):
            values = np.array([row[f"{measure_name}_{name}"] for row in rows])
            axis.errorbar(
                range(5), values.mean(1), values.std(1, ddof=1), label=name, color=colour, marker="o", capsize=3
            )
        for baseline, style in (("attention", ":"), ("mean", "--")):
            value = np.mean(found[f"slide labels: {baseline}"][f"{measure_name}_probability"])
            axis.axhline(value, color="grey", linestyle=style, label=f"{baseline} (slide labels), probability")
        axis.set_xticks(range(5), ["none", *shares])
        axis.set_xlabel("positive train slides with outlines")
        axis.set_title(f"{title} on val, mean and sd over seeds")
    axes[1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the table, compare settings on folds, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["table", "select", "figure"])
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--root", type=Path, default=None, help="store to use again; default: a temporary one")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--png", type=Path, default=None)
    options = parser.parse_intermixed_args()
    if options.kind == "figure":
        found = json.loads(options.out.read_text())
        print_comparisons(found)
        draw(found, options.png)
        return
    with tempfile.TemporaryDirectory(prefix="distmil-pcam-") as scratch:
        options.root = options.root or Path(scratch)
        settings = TABLE if options.kind == "table" else parse_settings(options.settings, options.share)
        found = run_all(options.kind, settings, options)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
