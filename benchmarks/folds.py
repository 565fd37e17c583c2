"""What an ensemble of folds brings: the main job with and without `training.folds`, on val, over seeds.

    python -m benchmarks.folds --root STORE [--manifest CSV] [--seeds 3] [--folds 5] [KEY=VALUE ...]

Both run on the same embeddings, with the annotations of the manifest; val is scored by each bundle and learned from by
none. The single network takes its thresholds from val itself, the ensemble from the predictions out of fold, so that
sensitivity and specificity of the single network are the rosier ones.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.inprocess import spread
from tests.support.data import PCAM_COHORT

COLUMNS = (
    "slide_auc", "slide_ap", "slide_sensitivity", "slide_specificity", "patch_auc_fused", "patch_ap_fused",
    "patch_auc_probability", "patch_ap_probability",
)  # fmt: skip


def train(root: Path, name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Run the main job and return the metrics of its splits. Raises: CalledProcessError if it fails."""
    command = [
        sys.executable, "-m", "distmil", "train", f"storage.root={root}", f"training.run={name}", "tracking.uri=none",
        "prediction.maps=false", *settings,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["metrics"]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print a table with a row for each way; below it the mean and spread over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, default=PCAM_COHORT / "manifest.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args(argv)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for folds in (0, options.folds):
            given = [f"cohort.manifest={options.manifest}", f"training.seed={seed}", f"training.folds={folds}"]
            found = train(options.root, f"folds-{folds}-seed-{seed}", [*given, *options.settings])
            for split, metrics in found.items():
                name = f"{folds} folds, {split.replace('_', ' ')}" if folds else f"one network, {split}"
                rows.setdefault(name, []).append(metrics)
    print(f"| network, slides | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, metrics in rows.items():
        cells = [spread([float(row[column]) for row in metrics]) for column in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
