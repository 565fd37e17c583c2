"""What an evaluation costs: lesions, FROC, pointing, overlap, intervals and calibration of a synthetic cohort.

    python -m benchmarks.evaluation [SLIDES] [PATCHES]

Prints CPU seconds of each step and the peak memory. Reading the tables is left out: it is the store's.
"""

import json
import resource
import sys
import time

import numpy as np
import shapely

from distmil.annotations.regions import OutlineRegions
from distmil.evaluation.calibration import calibration_of
from distmil.evaluation.intervals import Bootstrap, intervals_of
from distmil.evaluation.lesions import Lesions, lesions_of
from distmil.evaluation.localisation import localisation_of, localise, overlap_of
from distmil.evaluation.metrics import LabelledScores, at_threshold, summarise
from distmil.inference.scoring import READ_OUTS

EDGE_PX, MPP = 224, 0.5
EMPTY = shapely.MultiPolygon()


def some_targets(rng: np.random.Generator, side_px: int) -> shapely.Geometry:
    """Draw up to nine round targets with uneven borders on a slide."""
    blobs = []
    for _ in range(int(rng.integers(1, 10))):
        angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        radius = rng.uniform(100, 3000) * (1 + 0.2 * np.sin(7 * angle + rng.random()))
        centre = rng.uniform(0, side_px, 2)
        blobs.append(shapely.Polygon(centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)))
    return shapely.union_all(blobs)


def main(num_slides: int, num_patches: int) -> dict[str, float]:
    """Measure and return CPU seconds by step, and MiB."""
    rng, seconds = np.random.default_rng(0), dict.fromkeys(("lesions", "detections", "froc", "slides and patches"), 0.0)
    side = int(np.ceil(np.sqrt(num_patches)))
    row, column = np.divmod(np.arange(num_patches), side)
    x, y = ((place * EDGE_PX).astype(np.int32) for place in (column, row))
    grid = (x, y, np.full(num_patches, EDGE_PX, np.int32))
    centre = np.stack([x, y], axis=1) + EDGE_PX / 2
    found, rows = [], []
    for i in range(num_slides):
        is_target, lesions = np.zeros(num_patches, bool), Lesions.none()
        if i % 2:
            target = some_targets(rng, side * EDGE_PX)
            regions = OutlineRegions(target_groups=("t",), targets={1: target}, normal=EMPTY, unclear=EMPTY)
            start = time.process_time()
            lesions = lesions_of(regions, mpp=MPP)
            seconds["lesions"] += time.process_time() - start
            is_target = shapely.contains_xy(target, *centre.T)
        scores = tuple(
            np.clip(0.3 * is_target + 0.7 * rng.beta(1, 6, num_patches), 0, 1).astype(np.float32) for _ in range(3)
        )
        start = time.process_time()
        found.append(localise(grid, scores, is_target.astype(np.int8), lesions))
        seconds["detections"] += time.process_time() - start
        value = float(np.clip(0.3 * (i % 2) + 0.7 * rng.random(), 0, 1))
        rows.append(LabelledScores(i % 2, np.array([1 - value, value]), (value,) * len(READ_OUTS), is_target, scores))
    patients = [f"p{i // 2}" for i in range(num_slides)]
    start = time.process_time()
    localisation_of(found, patients)
    seconds["froc"] = time.process_time() - start
    start = time.process_time()
    summarise(rows) | at_threshold(rows, slide_score="bag", threshold=0.5)
    intervals_of(rows, patients, slide_score="bag", threshold=0.5)
    overlap_of(rows, patients, threshold=0.5)
    probability = [row.read_outs[0] for row in rows]
    calibration_of([row.label > 0 for row in rows], probability, Bootstrap.of(patients))
    seconds["slides and patches"] = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name: round(value, 2) for name, value in seconds.items()} | {"peak_mib": round(peak)}


if __name__ == "__main__":
    sizes = [int(text) for text in sys.argv[1:]]
    sys.stdout.write(json.dumps(main(*sizes) if sizes else main(1000, 10_000)) + "\n")
