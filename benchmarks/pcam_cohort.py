"""The main job on a cohort of real tissue with full patch truth: weak labels alone against both kinds of labels.

    python benchmarks/pcam_cohort.py --data ../shared/data/pcam_cohort [--seeds 3] [--root FOLDER]

Runs `jobs/train.py` once per seed and setting on `split=train`, then scores the val slides' written predictions
against `truth.csv`, which training never sees. A cell that tiling dropped as background counts with score 0. The
cohort's slides are assembled from PatchCamelyon patches: the seams are artificial, and "normal" is true of a patch's
middle only.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from distmil.metrics import PATCH_SCORES, auc, average_precision

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "L2 + L3 (slide labels only)": ["losses.patch=0", "losses.attention=0"],
    "all four losses": [],
}
MEASURES = ("patch_auc", "patch_ap")


def train(data: Path, root: Path, seed: int, name: str, overrides: list[str]) -> dict:
    """Run the main job and return its JSON line with the wall time."""
    run = f"{'weak' if overrides else 'dual'}-{seed}"
    command = [
        sys.executable, str(ROOT / "jobs" / "train.py"), f"cohort.manifest={data / 'manifest.csv'}",
        f"storage.root={root}", "tiling.patch_px=96", "tiling.mpp=0.972", f"training.run={run}",
        f"training.seed={seed}", *overrides,
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{name}, seed {seed} failed:\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer | {"seconds": time.monotonic() - started}


def score_patches(data: Path, predictions: Path) -> dict[str, float]:
    """Return AUC and AP of each patch score over all val cells of the truth."""
    truth: dict[str, dict[tuple[int, int], int]] = {}
    with (data / "truth.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["slide_id"].startswith("val_"):
                truth.setdefault(row["slide_id"], {})[int(row["x"]), int(row["y"])] = int(row["label"])
    is_target: list[int] = []
    scores: dict[str, list[float]] = {name: [] for name in PATCH_SCORES}
    for slide_id, cells in sorted(truth.items()):
        table = pq.read_table(predictions / "patches" / f"{slide_id}.parquet").to_pydict()
        row_of = {place: i for i, place in enumerate(zip(table["x"], table["y"], strict=True))}
        for place, label in cells.items():
            is_target.append(label)
            for name in PATCH_SCORES:
                scores[name].append(table[name][row_of[place]] if place in row_of else 0.0)
    target = np.array(is_target)
    found = {f"patch_auc_{name}": auc(target, values) for name, values in scores.items()}
    found |= {f"patch_ap_{name}": average_precision(target, values) for name, values in scores.items()}
    return {name: value for name, value in found.items() if value is not None} | {"cells": len(is_target)}


def main() -> None:
    """Run every setting and seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=None)
    options = parser.parse_args()
    data = options.data.resolve()
    root = options.root or Path(tempfile.mkdtemp(prefix="distmil-pcam-"))
    columns = [f"{m}_{s}" for m in MEASURES for s in PATCH_SCORES] + ["slide_auc", "slide_auc_topk_mean", "seconds"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; store {root}")
    print("| setting | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, overrides in SETTINGS.items():
        rows = []
        for seed in range(options.seeds):
            answer = train(data, root, seed, name, overrides)
            against_truth = score_patches(data, Path(answer["predictions"]))
            rows.append(answer["metrics"]["val"] | against_truth | {"seconds": answer["seconds"]})
        cells = []
        for column in columns:
            values = [row[column] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if column != "seconds" else
                         " / ".join(f"{value:.0f}" for value in values))  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
