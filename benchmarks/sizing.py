"""What a cohort comes to on a cluster: patches, bytes, core hours and GPU hours.

    python -m benchmarks.sizing [--slides 1000 100000] [--patches 10000] [--gpu-embed RATE] [--gpu-train RATE]

The encoder's rate on one core is measured here; the other CPU rates are those that benchmarks/tiling.py and
benchmarks/training.py measured. A GPU's rates are given, never measured here, and printed as given.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time

import numpy as np
import torch

from distmil.config.data import EncoderConfig
from distmil.encoders.registry import load_encoder, prepare_encoder
from distmil.storage.store import Store

PATCH_PX = 224
PATCH_BYTES = 15_600
"""JPEG of quality 90: the mean over the 71 patches of CMU-1-Small-Region.svs at 0.5 um/px."""
PLACE_BYTES = 28.6
"""A patch without pixels (tiling.store=coords): 7.3 in its shard and 21.3 in the slide's grid, which every slide has;
the mean over 3,592 patches of a slide by benchmarks/slidemaking.py."""
TILE_RATE = 701.0
"""Patches a second and core, encoded again at half of the file's resolution: benchmarks/tiling.py."""
TRAIN_RATE = 27_073.0 / 2
"""Patches a second and core in fp32: benchmarks/training.py epoch."""
EMBEDDING_BYTES = 2 * 2048 + 24
EPOCHS = 40


def embed_rate(patches: int = 32, rounds: int = 5) -> float:
    """Return patches a second of ResNet-50 on one core: the median of some rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        store = Store(folder)
        encoder = load_encoder(prepare_encoder(EncoderConfig(name="resnet50", weights="random"), store), store)
    pixels = np.random.default_rng(0).integers(0, 256, (patches, PATCH_PX, PATCH_PX, 3), np.uint8)
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        encoder.embed(pixels)
        seconds.append(time.perf_counter() - started)
    return patches / statistics.median(seconds[1:])


def hours(patches: float, rate: float) -> str:
    """Return hours of work as text."""
    return f"{patches / rate / 3600:,.1f}"


def size(num_bytes: float) -> str:
    """Return bytes as text."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:,.0f} MB"
    return f"{num_bytes / 1e12:,.1f} TB" if num_bytes >= 1e12 else f"{num_bytes / 1e9:,.0f} GB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--patches", type=int, default=10_000, help="patches with tissue in a slide")
    parser.add_argument("--gpu-embed", type=float, default=2_000.0, help="patches/s of ResNet-50 on your GPU")
    parser.add_argument("--gpu-train", type=float, default=500_000.0, help="patches/s of training on your GPU")
    options = parser.parse_args()
    encode = embed_rate()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; ResNet-50 on one core: "
          f"{encode:.1f} patches/s")  # fmt: skip
    counts = [slides * options.patches for slides in options.slides]
    rows = {
        "patches": [f"{count:,}" for count in counts],
        "patch shards": [size(count * PATCH_BYTES) for count in counts],
        "places and checksums, `tiling.store=coords`": [size(count * PLACE_BYTES) for count in counts],
        "embeddings (2048)": [size(count * EMBEDDING_BYTES) for count in counts],
        "core hours to tile": [hours(count, TILE_RATE) for count in counts],
        "core hours to embed, ResNet-50": [hours(count, encode) for count in counts],
        f"core hours to train {EPOCHS} epochs": [hours(EPOCHS * count, TRAIN_RATE) for count in counts],
        f"GPU hours to embed, at {options.gpu_embed:,.0f} patches/s (given)": [
            hours(count, options.gpu_embed) for count in counts
        ],
        f"GPU hours to train {EPOCHS} epochs, at {options.gpu_train:,.0f} patches/s (given)": [
            hours(EPOCHS * count, options.gpu_train) for count in counts
        ],
        f"read while training {EPOCHS} epochs": [size(EPOCHS * count * EMBEDDING_BYTES) for count in counts],
    }
    print("| | " + " | ".join(f"{slides:,} slides" for slides in options.slides) + " |")
    print("|---" * (len(counts) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
