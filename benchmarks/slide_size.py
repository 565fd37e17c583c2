"""Slides of 140 to 10,000 patches with small lesions: which read-out, which labels, which sizes to train on.

    python -m benchmarks.slide_size choose [--seeds 2] [--root FOLDER] [ROW ...]
    python -m benchmarks.slide_size table [--seeds 5] [--root FOLDER] [ROW ...]

A row trains a narrow network on 64 slides from the patches to learn on. ``choose`` judges patches of train.zip that no
row learned from; ``table`` judges val.zip. The judged patches are cut in two: one half makes the validation slides of
all sizes that evidence and thresholds are fitted on, the other the judged slides. Figures are means over seeds with
their standard deviation, of every read-out at every size: AUC, sensitivity and specificity at the threshold; then AUC
over all sizes together, and the share of slides of 10,000 patches with a single tumour patch that are found at 90 %
specificity. Slides are assembled, not scanned.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.dual_supervision import nest
from benchmarks.inprocess import spread, train_here
from benchmarks.poolslides import SIZES, Pool, make_slides, pools
from distmil.bags.bag import Bag
from distmil.config.loading import build_config
from distmil.evaluation.metrics import auc
from distmil.inference.scoring import READ_OUTS, score_bag
from distmil.inference.thresholds import youden_threshold
from distmil.models.regions import PatchEvidence
from distmil.training.engine import evaluate
from distmil.training.learner import Learner
from distmil.training.workers import Workers
from tests.support.data import DATA

ALL = tuple(SIZES)
LESION = (2, 12)
TRAIN_SLIDES, VALIDATION, JUDGED, SINGLE = 64, 16, 40, 60
"""Slides in train; slides of each size and class that thresholds are chosen on, and that are judged."""
NARROW = {"model.feature_dim": 128, "model.attention_dim": 64, "model.dropout": 0.5, "training.epochs": 30}


@dataclass(frozen=True)
class Row:
    """What is trained, on which sizes, and with the outlines of which share of the positive slides."""

    sizes: tuple[int, ...] = (140, 600)
    annotated: float = 1.0
    overrides: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "dual, trained at 140": Row((140,)),
    "dual, trained at 140 and 600": Row(),
    "dual, trained at all sizes": Row(ALL),
    "dual, a quarter annotated": Row(annotated=0.25),
    "dual, a tenth annotated": Row(annotated=0.1),
    "slide labels: L2 + L3": Row(annotated=0.0),
    "slide labels: softmax attention": Row(annotated=0.0, overrides={"model.name": "attention"}),
    "slide labels: gated attention": Row(annotated=0.0, overrides={"model.name": "gated_attention"}),
    "slide labels: max": Row(annotated=0.0, overrides={"model.name": "max"}),
    "patches only": Row(overrides={"model.name": "patches"}),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["choose", "table"])
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoder", default="texture+efficientnet_lite0")
    parser.add_argument("--data", type=Path, default=DATA / "pcam_pool")
    parser.add_argument("--root", type=Path, default=None, help="folder of embeddings; default: a temporary one")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distmil-sizes-") as scratch:
        found = pools(options.data, options.root or Path(scratch), encoder=options.encoder)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {options.encoder}\n")
    titles = ["AUC", "all sizes", "sensitivity", "specificity", "single patch found"]
    print("| row | read-out | " + " | ".join(titles) + " |\n|" + "---|" * (2 + len(titles)), flush=True)
    for name in options.rows:
        judged = found["val" if options.kind == "table" else "choose"]
        runs = [run(ROWS[name], found["learn"], judged, seed=seed) for seed in range(options.seeds)]
        for read_out in runs[0]:
            cells = [_cell([one[read_out][title] for one in runs]) for title in titles]
            print(f"| {name} | {read_out} | " + " | ".join(cells) + " |", flush=True)


def run(row: Row, learn: Pool, judged: Pool, *, seed: int) -> dict[str, dict[str, list[float]]]:
    """Train a row and judge it, by read-out; lists are in the order of the sizes."""
    learner, config = _train(row, learn, seed)
    validation, test = judged.halves()
    chosen_on = make_slides(validation, ALL, VALIDATION, lesion=LESION, seed=100 + seed)
    metrics = evaluate(learner, chosen_on, config, workers=Workers())
    evidence = PatchEvidence.in_row({f"val_{name}": value for name, value in metrics.items()})
    slides = make_slides(test, ALL, JUDGED, lesion=LESION, seed=200)
    single = [bag for bag in make_slides(test, (10_000,), SINGLE, lesion=(1, 1), seed=300) if bag.label]
    at = {"validation": chosen_on, "slides": slides, "single": single}
    scores = {part: _scores(learner, bags, evidence) for part, bags in at.items()}
    return {
        name: _figures({part: values[:, i] for part, values in scores.items()}, chosen_on, slides)
        for i, name in enumerate(READ_OUTS)
    }


def _train(row: Row, learn: Pool, seed: int) -> tuple[Learner, Any]:
    config = build_config(nest({**NARROW, **row.overrides, "training.seed": seed}))
    per_class = TRAIN_SLIDES // 2 // len(row.sizes)
    bags = make_slides(learn, row.sizes, per_class, lesion=LESION, seed=seed, annotated=row.annotated)
    torch.manual_seed(seed)
    return train_here(bags, config, embedding_dim=learn.normal.shape[1])


def _scores(learner: Learner, bags: Sequence[Bag], evidence: PatchEvidence | None) -> NDArray[np.float64]:
    """Score slides by every read-out, slides x read-outs."""
    rows = []
    for bag in bags:
        assert bag.places is not None
        found = score_bag(learner.eval_model.head, bag.source, learner.embed, top_k=8)
        found = found.with_regions(bag.places, evidence)
        rows.append([getattr(found, name) for name in READ_OUTS])
    return np.array(rows)


def _figures(
    scores: dict[str, NDArray[np.float64]], chosen_on: Sequence[Bag], slides: Sequence[Bag]
) -> dict[str, list[float]]:
    threshold = youden_threshold([bool(bag.label) for bag in chosen_on], scores["validation"])
    label, size = np.array([bool(bag.label) for bag in slides]), np.array([len(bag) for bag in slides])
    score = scores["slides"]
    is_called = score >= (0.5 if threshold is None else threshold)
    found: dict[str, list[float]] = {"AUC": [], "sensitivity": [], "specificity": []}
    for here in (size == one for one in ALL):
        found["AUC"].append(auc(label[here], score[here]) or np.nan)
        found["sensitivity"].append(float(is_called[here & label].mean()))
        found["specificity"].append(float((~is_called[here & ~label]).mean()))
    level = np.quantile(score[(size == ALL[-1]) & ~label], 0.9)
    found["all sizes"] = [auc(label, score) or np.nan]
    found["single patch found"] = [float((scores["single"] > level).mean())]
    return found


def _cell(values: Sequence[Sequence[float]]) -> str:
    """Word figures over seeds: one with its spread, or one for each size."""
    columns = np.array(values)
    if columns.shape[1] == 1:
        return spread(columns[:, 0].tolist())
    spreads = columns.std(axis=0, ddof=1) if len(columns) > 1 else np.zeros(columns.shape[1])
    means = " / ".join(f"{value:.2f}" for value in columns.mean(axis=0))
    return f"{means} (± {spreads.max():.2f} at most)"


if __name__ == "__main__":
    main()
