"""Metrics of a bundle on slides whose labels are known."""

from collections.abc import Sequence
from typing import Any

from distmil.cohort import Cohort, Slide
from distmil.inference.evaluation import evaluate_predictions
from distmil.pipeline.job import Job, bundle_place, check_any, held_out_slides, open_cohort
from distmil.pipeline.predict import Predictions, claim_output, open_bundle, predict_slides

METRICS = "metrics.json"


def run(job: Job) -> dict[str, Any]:
    """Measure a trained bundle on a split of a labelled manifest."""
    inner, bundle = open_bundle(job)
    cohort = open_cohort(inner, needs_labels=True, needs_splits=True)
    slides = check_any(held_out_slides(job, cohort), job.config.prediction.split or "val or test")
    name = claim_output(job, bundle, slides)
    made = predict_slides(inner, cohort, slides, bundle, place=bundle_place(job), run=name, with_labels=True)
    metrics = measure(inner, made, slides, cohort)
    return {"run": name, "metrics": metrics, **made.paths(job), "metrics_file": metrics_file(job, made)}


def measure(job: Job, made: Predictions, slides: Sequence[Slide], cohort: Cohort) -> dict[str, Any]:
    """Return metrics by split, show them, and write them beside the predictions."""
    split_of = {slide.slide_id: slide.split or "all" for slide in slides}
    found: dict[str, Any] = {}
    for split in sorted(set(split_of.values())):
        entries = [entry for entry in made.prepared.entries if split_of[entry.slide_id] == split]
        found[split] = evaluate_predictions(
            job.store,
            made.run,
            made.rows,
            entries,
            tables=made.tables,
            classes=cohort.classes,
            slide_score=job.config.prediction.slide_score,
            threshold=made.threshold,
        )
        rows = [(name, "not defined" if value is None else f"{value:.4f}") for name, value in found[split].items()]
        job.console.table(f"metrics on {split} ({len(entries)} slides)", ("metric", "value"), rows)
    job.store.write_json(f"{made.folder}/{METRICS}", found)
    return found


def metrics_file(job: Job, made: Predictions) -> str:
    """Return where ``measure`` wrote the metrics."""
    return job.store.path(f"{made.folder}/{METRICS}")
