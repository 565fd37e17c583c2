"""What each kind of label and each loss brings on real tissue with full patch truth, beside every baseline.

    python -m benchmarks.dual_supervision table   [--seeds 5] [--out FILE.json]
    python -m benchmarks.dual_supervision narrow  [--seeds 5] [--out FILE.json]
    python -m benchmarks.dual_supervision folds   [--seeds 5] [--out FILE.json]
    python -m benchmarks.dual_supervision stains  [--seeds 5] [--out FILE.json]
    python -m benchmarks.dual_supervision recipes [--seeds 5] [--out FILE.json]
    python -m benchmarks.dual_supervision select  [--seeds 2] [--share 0.25] NAME=KEY=VALUE,... ...
    python -m benchmarks.dual_supervision pairs   --out FILE.json
    python -m benchmarks.dual_supervision figure  --out FILE.json --png FILE.png

``table`` trains on `pcam_cohort`'s train split and scores val once against `truth.csv`, which training never sees; a
cell that tiling dropped as background counts with score 0. Seeds change initialisation, order, draws and which positive
slides are annotated. ``narrow`` does the same with a network of half the width, with and without views of shifted
stains. ``folds`` trains narrow ones on four folds inside train, 56 slides judged by networks that did not see them,
``stains`` some of them on two of three groups of stains, judged on the third, ``recipes`` rows that differ in one
setting, and ``select`` rows of your own; none of them looks at val. ``pairs`` compares the rows of a finished table
seed by seed, and ``figure`` draws it. What FILE holds is not measured again.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.dualrows import FOLDS, NARROW_TABLE, PAIRS, RECIPES, STAINS, TABLE, VIEWS, Setting
from benchmarks.inprocess import spread, train_here
from benchmarks.pcambags import Cohort, folds, load_cohort, with_budget, with_fewer_positives
from benchmarks.stainfolds import NUM_GROUPS, Groups, cut_down, stain_groups
from distmil.bags.bag import Bag
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.evaluation.metrics import PATCH_SCORES, auc, average_precision
from distmil.inference.scoring import NETWORK_READ_OUTS, BagScores, score_bag
from distmil.models.regions import ScoreGrid, fit_evidence
from distmil.training.learner import Learner
from tests.support.data import PCAM_COHORT

COLUMNS = [
    *(f"{measure}_{score}" for measure in ("patch_auc", "patch_ap") for score in PATCH_SCORES),
    *(f"slide_auc_{name}" for name in NETWORK_READ_OUTS),
    "slide_accuracy",
    "slide_loss",
]
NUM_DRAWS = 2000
ROWS = {"table": TABLE, "narrow": NARROW_TABLE, "folds": FOLDS, "stains": STAINS, "recipes": RECIPES}

REGIONS = "slide_auc_regions"
"""Of folds alone: its evidence is fitted on the other folds' slides, and the table has none to spare."""

Row = dict[str, Any]
Figures = dict[str, dict[str, Any]]
"""By row and column, a figure for each seed; under `made_from`, what a row is."""


def nest(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return dotted overrides as sections."""
    sections: dict[str, Any] = {}
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def train(bags: Sequence[Bag], config: Config, judging: Sequence[Bag] = ()) -> tuple[Learner, Config]:
    """Train in this process to the last epoch, or to the best one on some bags."""
    torch.manual_seed(config.training.seed)
    return train_here(bags, config, embedding_dim=bags[0].source.take(slice(0, 1)).shape[1], judging=judging)


def score(learner: Learner, bag: Bag, config: Config) -> BagScores:
    """Score one bag."""
    return score_bag(
        (learner.eval_model.head,),
        bag.source,
        learner.embed,
        top_k=config.bags.top_k,
        top_k_share=config.bags.top_k_share,
    )


def measure(labels: Sequence[int], scores: Sequence[BagScores], targets: Sequence[Any], patches: Sequence[Any]) -> Row:
    """Return the measures over slides and over their judged patches, and each slide's label and probability.

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
    for name in NETWORK_READ_OUTS:
        found[f"slide_auc_{name}"] = auc(is_positive, [getattr(one, name) for one in scores])
    found["slide_accuracy"] = float(np.mean((np.array([one.bag for one in scores]) >= 0.5) == is_positive))
    right = [one.bag_C[label] for one, label in zip(scores, labels, strict=True)]
    found["slide_loss"] = float(-np.log(np.clip(right, 1e-6, 1)).mean())
    row: Row = {name: float("nan") if value is None else value for name, value in found.items()}
    return row | {"label": [int(value) for value in is_positive], "bag": [one.bag for one in scores]}


def measure_bags(bags: Sequence[Bag], scores: Sequence[BagScores]) -> Row:
    """Return the measures of bags whose own labels are the truth."""
    patches = [np.arange(len(bag)) for bag in bags]
    return measure([bag.label or 0 for bag in bags], scores, [bag.label_N for bag in bags], patches)


def measure_val(cohort: Cohort, scores: Sequence[BagScores]) -> Row:
    """Return the measures of val's bags against the truth."""
    cells = [cohort.cells[bag.slide_id] for bag in cohort.val]
    return measure([bag.label or 0 for bag in cohort.val], scores, [c.label for c in cells], [c.patch for c in cells])


def _own(bags: Sequence[Bag], setting: Setting, seed: int) -> list[Bag]:
    """Return what a row trains on."""
    views = setting.overrides.get("encoder.views", 0)
    bags = [replace(bag, views=bag.views[:views]) for bag in with_fewer_positives(bags, setting.positives, seed=seed)]
    return with_budget(bags, setting.share, seed=seed)


def run_on_val(cohort: Cohort, setting: Setting, seed: int) -> Row:
    """Train on train and score val against the truth."""
    config = build_config(nest({**setting.overrides, "training.seed": seed}))
    started = time.perf_counter()
    learner, config = train(_own(cohort.train, setting, seed), config)
    seconds = time.perf_counter() - started
    scores = [score(learner, bag, config) for bag in cohort.val]
    return measure_val(cohort, scores) | {"seconds": seconds}


def run_on_folds(cohort: Cohort, setting: Setting, seed: int) -> Row:
    """Train on each fold's rest and score all folds together against the outlines of train."""
    config = build_config(nest({**setting.overrides, "training.seed": seed}))
    judged: list[Bag] = []
    scores: list[BagScores] = []
    fold_of: list[int] = []
    started = time.perf_counter()
    for learning, judging in folds(cohort.train):
        bags, kept = [cohort.train[i] for i in learning], []
        if setting.stops:
            inner, outer = folds(bags)[0]
            bags, kept = [bags[i] for i in inner], [bags[i] for i in outer]
        learner, active = train(_own(bags, setting, seed), config, kept)
        judged += [cohort.train[i] for i in judging]
        scores += [score(learner, cohort.train[i], active) for i in judging]
        fold_of += [len(set(fold_of))] * len(judging)
    found = measure_bags(judged, scores) | {REGIONS: auc_of_regions(judged, scores, fold_of)}
    return found | {"seconds": time.perf_counter() - started}


def auc_of_regions(bags: Sequence[Bag], scores: Sequence[BagScores], fold_of: Sequence[int]) -> float:
    """Compute the slide AUC of the read-out ``regions`` over all folds, each with the evidence of the other folds."""
    grids = [ScoreGrid.of(one.fused_N, bag.places) for one, bag in zip(scores, bags, strict=True) if bag.places]
    is_positive, found = [bool(bag.label) for bag in bags], {}
    for fold in sorted(set(fold_of)):
        others = [i for i, other in enumerate(fold_of) if other != fold]
        evidence = fit_evidence([grids[i] for i in others], [is_positive[i] for i in others], lambda mine: [mine])
        if evidence is None:
            return float("nan")
        found |= {i: grids[i].log_mean_ratio(evidence) for i, own in enumerate(fold_of) if own == fold}
    value = auc(is_positive, [found[i] for i in range(len(bags))])
    return float("nan") if value is None else value


def run_on_stains(cohort: Cohort, groups: Groups, setting: Setting, seed: int) -> Row:
    """Train on two groups of stains and judge the third, each in turn; the measures are means over the groups."""
    config = build_config(nest({**setting.overrides, "training.seed": seed}))
    started = time.perf_counter()
    rows = []
    for group in range(NUM_GROUPS):
        is_here = {slide_id: found == group for slide_id, found in groups.items()}
        learning = [bag for one in cohort.train if (bag := cut_down(one, ~is_here[one.slide_id]))]
        judged = [bag for one in cohort.train if (bag := cut_down(one, is_here[one.slide_id]))]
        learner, active = train(_own(learning, setting, seed), config)
        scores = [score(learner, bag, active) for bag in judged]
        rows.append(measure_bags(judged, scores))
    found: Row = {column: float(np.mean([row[column] for row in rows])) for column in COLUMNS}
    return found | {"seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class World:
    """What a worker holds."""

    cohort: Cohort
    groups: Groups


_WORLD: list[World] = []


def _start(kind: str, data: Path, root: Path) -> None:
    torch.set_num_threads(1)
    cohort = load_cohort(data, root, views=VIEWS)
    _WORLD.append(World(cohort, stain_groups(data, root, cohort.train) if kind == "stains" else {}))


def _work(task: tuple[str, Setting, int]) -> tuple[str, Row]:
    kind, setting, seed = task
    world = _WORLD[0]
    if kind in {"table", "narrow"}:
        return setting.name, run_on_val(world.cohort, setting, seed)
    if kind == "stains":
        return setting.name, run_on_stains(world.cohort, world.groups, setting, seed)
    return setting.name, run_on_folds(world.cohort, setting, seed)


def run_all(kind: str, settings: Sequence[Setting], options: argparse.Namespace) -> None:
    """Run every setting with every seed, several at once, and print and keep each row when it is complete."""
    found: Figures = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    made_from = {setting.name: {"kind": kind, "seeds": options.seeds, **asdict(setting)} for setting in settings}
    if foreign := [name for name in made_from if name in found and found[name].get("made_from") != made_from[name]]:
        sys.exit(f"{options.out} holds figures made from something else ({', '.join(foreign)}); give another file")
    settings = [setting for setting in settings if setting.name not in found]
    load_cohort(options.data, options.root, views=VIEWS)  # tiles and embeds once, before the workers look
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    columns = [*COLUMNS, *([] if kind in {"table", "narrow", "stains"} else [REGIONS]), "seconds"]
    print("| | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1), flush=True)
    tasks = [(kind, setting, seed) for setting in settings for seed in range(options.seeds)]
    begun: Figures = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, initializer=_start, initargs=(kind, options.data, options.root)) as pool:
        for name, row in pool.imap(_work, tasks):
            rows = begun.setdefault(name, {})
            for column, value in row.items():
                rows.setdefault(column, []).append(value)
            if len(rows["seconds"]) == options.seeds:
                print(f"| {name} | " + " | ".join(spread(rows[column]) for column in columns) + " |", flush=True)
                found[name] = {"made_from": made_from[name], **rows}
                if options.out:
                    options.out.write_text(json.dumps(found, indent=1))


def parse_settings(texts: Sequence[str], share: float) -> list[Setting]:
    """Return settings from NAME=KEY=VALUE,KEY=VALUE."""
    settings = []
    for text in texts:
        name, _, rest = text.partition("=")
        pairs = [pair.split("=") for pair in rest.split(",") if pair]
        settings.append(Setting(name, share, {key: json.loads(value) for key, value in pairs}))
    return settings


def compare(found: Figures, one: str, other: str, column: str) -> str:
    """Return the difference of two rows paired over seeds: mean, spread, and how many seeds agree."""
    difference = np.array(found[other][column]) - np.array(found[one][column])
    agree = int((difference > 0).sum())
    return f"{difference.mean():+.3f} ± {difference.std(ddof=1):.3f}, {agree} of {len(difference)} seeds"


def slide_interval(found: Figures, one: str, other: str) -> tuple[float, float]:
    """Return the 95 % interval of two rows' difference in slide AUC (bag), mean over seeds, by drawing slides anew.

    Spread over seeds says nothing of how few slides are judged; this does. Source: percentile bootstrap, each class
    drawn apart.
    """
    generator, differences = np.random.default_rng(0), []
    label = np.array(found[one]["label"][0]) > 0
    for _ in range(NUM_DRAWS):
        drawn = np.concatenate([generator.choice(np.flatnonzero(label == side), (label == side).sum())
                                for side in (False, True)])  # fmt: skip
        means = [
            np.mean([auc(label[drawn], np.array(scores)[drawn]) for scores in found[name]["bag"]])
            for name in (one, other)
        ]
        differences.append(means[1] - means[0])
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def print_comparisons(found: Figures) -> None:
    """Print what the table is asked for, paired over seeds."""
    for one, other, column in PAIRS:
        if one in found and other in found:
            line = f"| {column}: {other} less {one} | {compare(found, one, other, column)} |"
            if column == "slide_auc_bag" and "label" in found[one]:  # means over stain groups hold no slides
                low, high = slide_interval(found, one, other)
                line += f" {low:+.3f} to {high:+.3f} by bootstrap over slides |"
            print(line)


def draw(found: Figures, path: Path) -> None:
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
    """Run a table, compare its rows, or draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*ROWS, "select", "pairs", "figure"])
    parser.add_argument("settings", nargs="*", help="names of rows, default all; of select NAME=KEY=VALUE,KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--root", type=Path, default=None, help="store to use again; default: a temporary one")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--png", type=Path, default=None)
    options = parser.parse_intermixed_args()
    if options.kind in {"pairs", "figure"}:
        found = json.loads(options.out.read_text())
        draw(found, options.png) if options.kind == "figure" else print_comparisons(found)
        return
    with tempfile.TemporaryDirectory(prefix="distmil-pcam-") as scratch:
        options.root = options.root or Path(scratch)
        if options.kind in ROWS:
            settings = [row for row in ROWS[options.kind] if row.name in options.settings or not options.settings]
        else:
            settings = parse_settings(options.settings, options.share)
        run_all(options.kind, settings, options)


if __name__ == "__main__":
    main()
