"""Metrics of a bundle on slides whose labels are known."""

from collections.abc import Sequence
from typing import Any

from distmil.cohort import Cohort, Slide
from distmil.evaluation import judge_predictions
from distmil.stages.inputs import check_any, held_out_slides, open_cohort
from distmil.stages.predict import Predictions, bundle_place, judge_slides, open_bundle
from distmil.stages.runtime import Job


def run(job: Job) -> dict[str, Any]:
    """Measure a trained bundle on a split of a labelled manifest."""
    inner, bundle, name = open_bundle(job)
    cohort = open_cohort(inner, needs_labels=True, needs_splits=True)
    slides = check_any(held_out_slides(job, cohort), job.config.prediction.split or "val or test")
    made = judge_slides(inner, cohort, slides, bundle, place=bundle_place(job), run=name, with_labels=True)
    metrics = measure(inner, made, slides, cohort)
    file = f"{made.folder}/metrics.json"
    job.store.write_json(file, metrics)
    return {"run": name, "metrics": metrics, "metrics_file": job.store.path(file), **made.paths(job)}


def measure(job: Job, made: Predictions, slides: Sequence[Slide], cohort: Cohort) -> dict[str, Any]:
    """Return metrics by split, and show them."""
    split_of = {slide.slide_id: slide.split or "all" for slide in slides}
    found: dict[str, Any] = {}
    for split in sorted(set(split_of.values())):
        entries = [entry for entry in made.prepared.entries if split_of[entry.slide_id] == split]
        found[split] = judge_predictions(
            job.store,
            made.run,
            made.rows,
            entries,
            classes=cohort.classes,
            slide_score=job.config.prediction.slide_score,
        )
        rows = [(name, "not defined" if value is None else f"{value:.4f}") for name, value in found[split].items()]
        job.console.table(f"metrics on {split} ({len(entries)} slides)", ("metric", "value"), rows)
    return found
