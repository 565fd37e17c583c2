"""What MLflow gets of single slides: scores without paths, patients and sites, and the sheets to look at first."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from distmil.evaluation.slide_results import SlideResult, to_csv
from distmil.inference.tables import FROC, INTERVALS, METRICS, RELIABILITY, REPORT, RESULTS, predictions_folder
from distmil.storage.store import Store
from distmil.tracking.artifacts import log_once
from distmil.tracking.tracker import Tracker
from distmil.visualization.slide_maps import SHEET

SHEETS = 8
"""Sheets of maps that a run has at most."""
PRIVATE_COLUMNS = ("patient_id", "site", "reason", "slide_path")
"""Columns of ``slides.csv`` that stay in the store."""


def log_results(
    tracker: Tracker, store: Store, run: str, results: Sequence[SlideResult], *, shows_slides: bool
) -> None:
    """Record the results of a prediction run: metrics, and what is said and shown of slides.

    Args:
        tracker: The run in MLflow.
        store: Where the predictions are.
        run: Their name.
        results: The slides, those to look at first on top.
        shows_slides: Record what has a slide's id too: ``slides.csv``, the report, and the sheets of maps.
    """
    if not tracker.is_recording:
        return
    folder = predictions_folder(run)
    there = set(store.names(folder))
    with tempfile.TemporaryDirectory(prefix="distmil-") as scratch:
        names = (METRICS, INTERVALS, FROC, RELIABILITY, *([REPORT] if shows_slides else []))  # GROUPS names sites
        for name in names:
            if name in there:
                Path(scratch, name).write_bytes(store.read(f"{folder}/{name}"))
        if shows_slides and results:
            Path(scratch, RESULTS).write_bytes(to_csv(results, without=PRIVATE_COLUMNS))
        if any(Path(scratch).iterdir()):
            tracker.log_artifact(Path(scratch), "results")
    if shows_slides:
        log_once(tracker, _sheets(store, f"{folder}/maps", results), folder="maps", most=SHEETS)


def _sheets(store: Store, folder: str, results: Sequence[SlideResult]) -> dict[str, bytes]:
    """Read the sheets of the first slides that have one."""
    there = set(store.names(folder))
    names = [f"{result.slide_id}_{SHEET}.png" for result in results if result.probability is not None]
    return {name: store.read(f"{folder}/{name}") for name in [name for name in names if name in there][:SHEETS]}
