"""What pre-training on the cohort's own patches brings: the same training on embeddings before and after it.

    python -m benchmarks.pretraining select --root STORE [NAME=KEY=VALUE,... ...]
    python -m benchmarks.pretraining table  --root STORE [--seeds 5] [NAME=KEY=VALUE,...]

``table`` pre-trains efficientnet_lite0 on the patches of `pcam_cohort`'s 56 train slides, trains a narrow network with
the outlines of a quarter of the positive slides on the embeddings of each row, and scores val against `truth.csv`.
``select`` measures settings on four folds inside train; val is not looked at. Both print the minutes and the CPU
minutes of the pre-training, which goes on from its last checkpoint where it was stopped, and is not done again in a
store that has it.

What is judged in ``select`` was seen by the pre-training, though without labels; val was not.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.dual_supervision import run_on_folds, run_on_val
from benchmarks.dualrows import QUARTER, narrow
from benchmarks.inprocess import spread
from benchmarks.pcambags import Cohort, cohort_config, load_cohort
from distmil.bags.bag import Bag, BagEntry
from distmil.bags.source import EmbeddingSource
from distmil.cohort import read_cohort
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import prepare_encoder
from distmil.pipeline.cluster import stop_ray
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import prepare
from distmil.pretraining.checkpoints import save_checkpoint
from distmil.pretraining.run import open_run
from distmil.pretraining.weights import save_weights, weights_folder
from distmil.storage.store import RECORD_FILE, Store
from distmil.training.workers import Workers
from tests.support.data import PCAM_COHORT

NETWORK = "efficientnet_lite0"
PLAIN: Mapping[str, Any] = {"engine": "torch", "precision": "fp32"}
SHORT: Mapping[str, Any] = {"view_px": 128, "steps": 60}
"""Settings of the pre-training where none are named: one pass over the patches; the rest are the defaults."""
TRAINING = narrow("a quarter annotated", QUARTER, {})
COLUMNS = [
    *(f"{measure}_{score}" for score in ("attention", "probability", "fused") for measure in ("patch_auc", "patch_ap")),
    "slide_auc_bag",
]
MOST_THREADS = 2


def pretrained(name: str, settings: Mapping[str, Any], data: Path, root: Path) -> str:
    """Pre-train, unless that was done, and return the folder of the weights."""
    store, folder = Store(str(root)), weights_folder(name)
    if store.exists(f"{folder}/{RECORD_FILE}"):
        return store.path(folder)
    values = cohort_config(data, encoder={"name": NETWORK, "batch_size": 256, **PLAIN}).model_dump()
    config = build_config(values | {"pretraining": dict(settings)})
    entries = train_entries(config, store, data)
    spec = prepare_encoder(config.encoder, store)
    torch.set_num_threads(MOST_THREADS)
    run = open_run(config, entries, spec, store, name=name, device=torch.device("cpu"), threads=MOST_THREADS)
    started, cpu = time.monotonic(), time.process_time()

    def after_step(loss: float) -> None:
        minutes = (time.monotonic() - started) / 60
        print(f"{name}: step {len(run.history.losses)}/{run.plan.num_steps}, loss {loss:.3f}, {minutes:.1f} min",
              flush=True)  # fmt: skip
        if len(run.history.losses) % 20 == 0:
            save_checkpoint(store, name, run.learner, run.history)

    while not run.is_finished:
        print(f"{name}: {run.advance(Workers(), after_step)}", flush=True)
        save_checkpoint(store, name, run.learner, run.history)
    wall, used = (time.monotonic() - started) / 60, (time.process_time() - cpu) / 60
    print(f"{name}: pre-trained in {wall:.1f} min, {used:.1f} CPU min, load {os.getloadavg()[0]:.1f}", flush=True)
    save_weights(store, name, run.learner.kept, spec, run.history)
    torch.set_num_threads(1)
    return store.path(folder)


def train_entries(config: Config, store: Store, data: Path) -> list[BagEntry]:
    """Tile and label the train slides."""
    cohort = read_cohort(config.cohort, manifest=data / "manifest.csv", needs_labels=True, needs_splits=True)
    from_images = config.model_copy(update={"encoder": config.encoder.model_copy(update={"trainable": True})})
    spec = prepare_encoder(config.encoder, store)
    try:
        prepared = prepare(Job(from_images, store), cohort.of_split("train"), spec, with_labels=True, learns=True)
    finally:
        stop_ray()
    return prepared.entries


def beside(one: Cohort, other: Cohort) -> Cohort:
    """Put the embeddings of equal bags side by side."""

    def joined(bags: Sequence[Bag], others: Sequence[Bag]) -> list[Bag]:
        return [
            replace(bag, source=EmbeddingSource([np.concatenate([_matrix(bag), _matrix(second)], axis=1)]))
            for bag, second in zip(bags, others, strict=True)
        ]

    return Cohort(joined(one.train, other.train), joined(one.val, other.val), one.cells)


def _matrix(bag: Bag) -> Any:
    return np.asarray(bag.source.take(slice(None)))


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of pre-trainings by name, from NAME=KEY=VALUE,KEY=VALUE."""
    found = {}
    for text in texts:
        name, _, rest = text.partition("=")
        pairs = [pair.split("=") for pair in rest.split(",") if pair]
        found[name] = {key: json.loads(value) for key, value in pairs}
    return found


def main() -> None:
    """Pre-train, and print a row for each kind of embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["select", "table"])
    parser.add_argument("settings", nargs="*", help="NAME=KEY=VALUE,KEY=VALUE of pre-trainings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--root", type=Path, required=True, help="store, to use again")
    options = parser.parse_intermixed_args()
    runs = {
        name: pretrained(name, settings, options.data, options.root)
        for name, settings in (parse_settings(options.settings) or {"all": dict(SHORT)}).items()
    }
    torch.set_num_threads(1)

    def cohort(**encoder: str) -> Cohort:
        try:
            return load_cohort(options.data, options.root, encoder={**PLAIN, **encoder})
        finally:
            stop_ray()

    texture, published = cohort(name="texture"), cohort(name=NETWORK)
    rows = {"texture": texture, NETWORK: published, f"texture+{NETWORK}": beside(texture, published)}
    for name, folder in runs.items():
        own = cohort(name=NETWORK, weights=folder)
        rows |= {f"{NETWORK}, {name}": own, f"texture+{NETWORK}, {name}": beside(texture, own)}
    work = run_on_folds if options.kind == "select" else run_on_val
    print("| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1), flush=True)
    with threadpool_limits(limits=1):
        for name, found in rows.items():
            measured = [work(found, TRAINING, seed) for seed in range(options.seeds)]
            cells = [spread([row[column] for row in measured]) for column in COLUMNS]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
