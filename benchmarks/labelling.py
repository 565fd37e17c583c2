"""What exact labels cost: patches under large outlines, on one core, and how far a raster would be off.

    python -m benchmarks.labelling [--patches 100000] [--outlines 50] [--corners 10000]

A tenth of the outlines are carve-outs and a tenth are ignored. The time is the process's own. The shares are compared
with those of a raster of 4 x 4 samples a patch, which is what a quick program would take.
"""

import argparse
import time

import numpy as np
import shapely
from numpy.typing import NDArray

from distmil.annotations.coverage import united
from distmil.annotations.outlines import Annotation
from distmil.annotations.regions import Grid
from distmil.labels.rules import LabelRule, label_patches, resolve_groups

EXTENT_PX = 224
SAMPLES = 4
GROUPS = resolve_groups(("negative", "positive"), {"pen": "ignore"})


def outline(rng: np.random.Generator, *, size_px: int, corners: int) -> shapely.Polygon:
    """Draw a jagged lesion of 1 to 3 mm."""
    turn = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = rng.uniform(2000, 6000) * (0.8 + 0.1 * np.sin(7 * turn) + 0.002 * rng.normal(size=corners))
    x, y = rng.uniform(0.05, 0.95, 2) * size_px
    return shapely.Polygon(np.column_stack([x + reach * np.cos(turn), y + reach * np.sin(turn)]))


def sampled(annotation: Annotation, grid: Grid) -> NDArray[np.float64]:
    """Estimate shares by 4 x 4 points a patch, which a spatial index finds."""
    target = annotation.regions["tumor"]
    for name in ("exclude", "pen"):
        target = shapely.difference(target, annotation.regions[name])
    shapely.prepare(target)
    offset = (np.arange(SAMPLES) + 0.5) / SAMPLES * EXTENT_PX
    hits = [shapely.contains_xy(target, grid.x + dx, grid.y + dy) for dx in offset for dy in offset]
    return np.asarray(np.mean(hits, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("patches", 100_000), ("outlines", 50), ("corners", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    columns = int(np.ceil(np.sqrt(args.patches)))
    number = np.arange(args.patches, dtype=np.int32)
    grid = Grid(number % columns * EXTENT_PX, number // columns * EXTENT_PX, np.full(args.patches, EXTENT_PX, np.int32))
    size = (columns * EXTENT_PX, columns * EXTENT_PX)
    parts: dict[str, list[shapely.Polygon]] = {"tumor": [], "exclude": [], "pen": []}
    for i in range(args.outlines):
        name = {0: "exclude", 1: "pen"}.get(i % 10, "tumor")
        parts[name].append(outline(rng, size_px=size[0], corners=args.corners))
    started = time.process_time()
    annotation = Annotation({name: united(found) for name, found in parts.items()})
    gathered = time.process_time()
    done = label_patches(
        grid, annotation, slide_label=1, num_classes=2, annotation_complete=True, groups=GROUPS,
        rule=LabelRule(0.5, 0.1), slide_id="s", slide_size=size,
    )  # fmt: skip
    ended = time.process_time()
    share = sampled(annotation, grid)
    compared = time.process_time()
    label, exact = done.labels.label, np.nan_to_num(done.labels.target_fraction)
    partly = (exact > 0) & (exact < 1)
    print(f"{args.patches} patches, {args.outlines} outlines of {args.corners} corners")
    print(
        f"{gathered - started:.1f} s to unite the outlines, {ended - gathered:.1f} s to label the patches, of one core"
    )
    print(f"{(label > 0).sum()} positive, {(label == 0).sum()} negative, {(label < 0).sum()} unknown")
    print(f"a raster of {SAMPLES} x {SAMPLES} samples: {compared - ended:.1f} s; in {partly.sum()} patches on a border")
    print(f"it is {np.abs(share - exact)[partly].mean():.3f} off on average, {np.abs(share - exact).max():.3f} at most")


if __name__ == "__main__":
    main()
