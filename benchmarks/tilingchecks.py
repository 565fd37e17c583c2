"""Checks that come with the tiling benchmark: exact pixels, and memory while a job runs."""

import argparse
import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from distmil.slides.jpeg_tiles import LevelPlace, open_level
from distmil.slides.reader import open_slide

POLL_S = 0.05


def compare_pixels(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Compare random patches at level 0 with OpenSlide, and twofold reduced ones with tifffile and area averaging."""
    del scratch
    names = ["slides/CMU-1-Small-Region.svs", "pcam_cohort/slides/train_000.tif", "pcam_cohort/slides/val_007.tif"]
    figures: dict[str, Any] = {}
    for name in names:
        path = options.data / name
        rng = np.random.default_rng(7)
        with open_slide(path) as image, open_level(path, _place(image), size=image.size) as tiles:
            worst = 0
            for _ in range(-(-options.patches // len(names))):
                edge = int(rng.choice([96, 224, 256, 300]))
                x, y = (int(rng.integers(0, length)) for length in image.size)
                one = tiles.read(x, y, level=0, width=edge, height=edge).astype(np.int16)
                worst = max(worst, int(np.abs(one - image.read(x, y, level=0, width=edge, height=edge)).max()))
            halves, largest = _compare_halves(path, image, rng)
        figures[name] = {"largest_difference": worst, "largest_difference_halved": largest}
        print(f"{name}: {-(-options.patches // len(names))} patches at level 0, largest difference {worst}; ", end="")
        print(f"{halves} at half the resolution beside tifffile, largest difference {largest}", flush=True)
    return figures


def _place(image: Any, reduction: int = 1) -> LevelPlace:
    return LevelPlace(image.level_sizes[0], 1.0, reduction=reduction, kept_tiles=30)


def _compare_halves(path: Path, image: Any, rng: np.random.Generator) -> tuple[int, int]:
    pixels = tifffile.imread(path, key=0)
    largest, number = 0, 200
    with open_level(path, _place(image, 2), size=image.size) as tiles:
        for _ in range(number):
            x, y = (2 * int(rng.integers(0, (length - 448) // 2)) for length in image.size)
            expected = cv2.resize(pixels[y : y + 448, x : x + 448], (224, 224), interpolation=cv2.INTER_AREA)
            one = tiles.read(x, y, level=0, width=224, height=224).astype(np.int16)
            largest = max(largest, int(np.abs(one - expected).max()))
    return number, largest


def watch_memory(command: list[str]) -> dict[str, Any]:
    """Run the tile job; return its time, the largest memory of its tiling processes, and what each of them wrote."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, shards = 0.0, Counter[str]()
    while process.poll() is None:
        for pid in _children("distmil.processes.child"):
            peak = max(peak, _peak_mb(pid))
            shards[pid] = _written_mb(pid)
        time.sleep(POLL_S)
    assert process.stdout is not None
    answer = json.loads(process.stdout.read().splitlines()[-1])
    return {
        "patches": answer["num_patches"],
        "seconds": time.monotonic() - started,
        "peak_mb": peak,
        "shards": [f"{mb} MB" for mb in shards.values()],
    }


def _children(marker: str) -> list[str]:
    """Return the processes of this user whose command holds a word."""
    found = []
    for pid in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            if marker in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:
            continue
    return found


def _peak_mb(pid: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def _written_mb(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) // 1_000_000 for line in lines if line.startswith("wchar"))
