"""Everything that leaves the prediction of one huge slide: CPU seconds, wall seconds and peak memory of one process.

    python -m benchmarks.exporting [--edge 100000] [--patches 150000] [--overview]

The slide is 100,000 x 100,000 px; its patches lie on a grid of 256 px, tissue in blobs, and the probability is smooth,
so that regions have ragged edges and holes. Nothing is written. PNG maps need pixels: with --overview they are drawn on
white, which costs what drawing costs, without reading the slide.
"""

import argparse
import json
import resource
import time
from collections.abc import Mapping

import cv2
import numpy as np
import pyarrow as pa

from distmil.cohort import Slide
from distmil.exporting.frame import frame_of
from distmil.exporting.scores import scored_patches
from distmil.exporting.slide_export import SlideExport
from distmil.storage.schemas import patch_predictions_schema
from distmil.visualization.slide_maps import Reading, draw_maps

EXTENT_PX = 256
MPP = 0.25
SCORES = ("attention", "probability", "fused", "agreement")


def smooth(rng: np.random.Generator, count: int, sigma: float) -> np.ndarray:
    """Draw smooth values, count x count, spread evenly over 0 to 1."""
    field = cv2.GaussianBlur(rng.random((count, count), dtype=np.float32), (0, 0), sigma)
    return field.ravel().argsort().argsort().reshape(count, count) / (count * count)


def make_table(edge: int, num_patches: int, seed: int = 0) -> pa.Table:
    """Score a slide's patches."""
    rng = np.random.default_rng(seed)
    count = edge // EXTENT_PX
    tissue = smooth(rng, count, 12).ravel()
    kept = np.sort(tissue.argsort()[-min(num_patches, count * count) :])
    rough = smooth(rng, count, 3).ravel()[kept] + rng.normal(0, 0.06, len(kept))
    probability = rough.clip(0, 1).astype(np.float32)
    attention = (0.7 * probability + 0.3 * rng.random(len(kept))).astype(np.float32)
    values = {
        "slide_id": ["huge"] * len(kept),
        "x": (kept % count * EXTENT_PX).astype(np.int32),
        "y": (kept // count * EXTENT_PX).astype(np.int32),
        "extent_px": np.full(len(kept), EXTENT_PX, np.int32),
        "attention": attention,
        "probability": probability,
        "topk_probability": probability,
        "fused": attention * probability,
        "predicted": ["negative"] * len(kept),
    }
    return pa.table(values, schema=patch_predictions_schema(["negative", "positive"]))


def costs(before: float, files: Mapping[str, bytes]) -> dict[str, float]:
    """Return the CPU seconds since a moment, and the size of files."""
    return {"cpu_s": round(time.process_time() - before, 2), "MB": round(sum(map(len, files.values())) / 1e6, 1)}


def measure(edge: int, num_patches: int, *, with_overview: bool) -> dict[str, object]:
    """Make every file, and return seconds and bytes by format."""
    table, size = make_table(edge, num_patches), (edge, edge)
    cv2.setNumThreads(1)
    rows: dict[str, object] = {"patches": table.num_rows, "edge_px": edge}
    start_cpu, start = time.process_time(), time.monotonic()
    patches = scored_patches(table, abnormal="positive")
    export = SlideExport("huge", patches, frame_of(size, None, origin="auto"), MPP, 0.75)
    for kind in ("geojson", "csv", "tiff", "ome", "parquet"):
        before = time.process_time()
        files = getattr(export, kind)()
        rows[kind] = costs(before, files)
    if with_overview:
        before = time.process_time()
        reading = Reading(0.9, "bag", 0.5, "positive", "positive", 0.75)
        drawn = draw_maps(
            Slide("huge", ""), patches.to_table("huge", list(patches.scores)), reading,
            outlines=lambda: None, size=size, mpp=MPP, max_px=1024, reader="auto", names=SCORES,
        )  # fmt: skip
        rows["png"] = costs(before, drawn.images)
    rows["regions"] = len(export.regions)
    rows["holes"] = sum(len(region.polygon.interiors) for region in export.regions)
    rows["cpu_s"], rows["wall_s"] = round(time.process_time() - start_cpu, 1), round(time.monotonic() - start, 1)
    rows["peak_MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=100_000)
    parser.add_argument("--patches", type=int, default=150_000)
    parser.add_argument("--overview", action="store_true", help="draw the PNG maps too, on white")
    given = parser.parse_args()
    print(json.dumps(measure(given.edge, given.patches, with_overview=given.overview), indent=1))


if __name__ == "__main__":
    main()
