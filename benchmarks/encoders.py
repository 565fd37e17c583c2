"""Which encoder is worth its time: a linear probe and a short training on folds inside train, beside patches a second.

    python -m benchmarks.encoders [--seeds 2] [--root STORE] [NAME ...]

Every encoder embeds the train split of `pcam_cohort`, 96 px patches at 0.972 um/px; val is not looked at. Embeddings of
encoders side by side are put together from those of each: probe and network standardise every column, so that the unit
of a block makes no difference. Four folds of slides are judged by what was fitted on the other three, all together:

- the probe is a logistic regression on patches, trained on the outlines of all slides, at the strength named;
- the training is a narrow network for few epochs with the outlines of a quarter of the positive slides.

The speed is that of one thread on patches in memory.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.dual_supervision import run_on_folds
from benchmarks.dualrows import narrow
from benchmarks.inprocess import spread
from benchmarks.pcambags import Cohort, cohort_config, folds
from distmil.bags.bag import Bag, open_bag
from distmil.bags.source import EmbeddingSource
from distmil.cohort import read_cohort
from distmil.config.loading import build_config
from distmil.encoders.golden import golden_image
from distmil.encoders.registry import load_encoder, prepare_encoder
from distmil.evaluation.metrics import auc, average_precision
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import prepare
from distmil.storage.store import Store
from tests.support.data import PCAM_COHORT

ENCODERS = ("texture", "efficientnet_lite0", "texture+efficientnet_lite0")
STRENGTHS = (1e-4, 1e-3, 1e-2)
SHORT = narrow("short", 0.25, {"training.epochs": 12})
TRAINED = ("patch_auc_probability", "patch_ap_probability", "slide_auc_bag")


def train_bags(name: str, data: Path, root: Path) -> list[Bag]:
    """Open the bags of train with the embeddings of one encoder, or of several side by side."""
    if "+" in name:
        return [_beside(bags) for bags in zip(*(train_bags(one, data, root) for one in name.split("+")), strict=True)]
    config = build_config(cohort_config(data).model_dump() | {"encoder": {"name": name}})
    store = Store(str(root))
    cohort = read_cohort(config.cohort, manifest=data / "manifest.csv", needs_labels=True, needs_splits=True)
    spec = prepare_encoder(config.encoder, store)
    entries = prepare(Job(config, store), cohort.of_split("train"), spec, with_labels=True, learns=True).entries
    return [open_bag(store, entry, num_classes=2, form="class") for entry in entries]


def _beside(bags: Sequence[Bag]) -> Bag:
    """Put the embeddings of equal bags side by side."""
    blocks = [np.asarray(bag.source.take(slice(None))) for bag in bags]
    return replace(bags[0], source=EmbeddingSource([np.concatenate(blocks, axis=1)]))


def probe(bags: Sequence[Bag], strength: float) -> tuple[float | None, float | None]:
    """Return AUC and AP of a linear probe over all folds' patches."""
    embeddings = [np.asarray(bag.source.take(slice(None)), np.float32) for bag in bags]
    labels: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    for learning, judging in folds(bags):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
        fitted.fit(
            np.concatenate([embeddings[i] for i in learning]), np.concatenate([bags[i].label_N > 0 for i in learning])
        )
        labels += [bags[i].label_N > 0 for i in judging]
        scores += [fitted.decision_function(embeddings[i]) for i in judging]
    label, score = np.concatenate(labels), np.concatenate(scores)
    return auc(label, score), average_precision(label, score)


def patches_per_second(name: str, root: Path, *, px: int, seconds: float = 6.0) -> float:
    """Return how many patches of an edge one thread embeds in a second of its own CPU time."""
    store = Store(str(root))
    encoder = load_encoder(prepare_encoder(build_config({"encoder": {"name": name}}).encoder, store), store)
    images = np.stack([np.roll(golden_image(px), shift, 0) for shift in range(16)])
    encoder.embed(images)
    done, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        encoder.embed(images)
        done += len(images)
    return done / (time.process_time() - started)


def main() -> None:
    """Print a row an encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--root", type=Path, default=None, help="store to use again; default: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [f"probe C={strength:g}: AUC / AP" for strength in STRENGTHS]
    print("| encoder | patches/s, 96 px | 224 px | " + " | ".join([*columns, *TRAINED]) + " |")
    print("|" + "---|" * (3 + len(columns) + len(TRAINED)), flush=True)
    with tempfile.TemporaryDirectory(prefix="distmil-encoders-") as scratch, threadpool_limits(limits=1):
        root = options.root or Path(scratch)
        for name in options.names:
            print(row(name, options.data, root, seeds=options.seeds), flush=True)


def row(name: str, data: Path, root: Path, *, seeds: int) -> str:
    """Measure one encoder."""
    bags = train_bags(name, data, root)
    cells: list[Any] = [name, *(f"{patches_per_second(name, root, px=px):.0f}" for px in (96, 224))]
    cells += [
        " / ".join(f"{value:.3f}" for value in probe(bags, strength) if value is not None) for strength in STRENGTHS
    ]
    found = [run_on_folds(Cohort(bags, [], {}), SHORT, seed) for seed in range(seeds)]
    cells += [spread([one[column] for one in found]) for column in TRAINED]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
