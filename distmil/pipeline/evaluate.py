"""Metrics of a bundle on slides whose labels are known."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from distmil.cohort import Cohort, Slide
from distmil.evaluation.lesions import known_lesions
from distmil.evaluation.predictions import Rules, evaluate_predictions
from distmil.evaluation.slide_results import SlideResult
from distmil.evaluation.words import counts_to_look_at
from distmil.inference.bundle import Bundle
from distmil.inference.tables import METRICS, REPORT
from distmil.pipeline.cluster import check_gpus
from distmil.pipeline.job import Job, bundle_place, check_any, open_cohort
from distmil.pipeline.predict import Predictions, claim_output, open_bundle, predict_slides
from distmil.pipeline.results import show_metrics, show_record, write_evaluations, write_report, write_results
from distmil.recording.prediction import PredictionRecord
from distmil.reporting.run_charts import Course


def run(job: Job) -> dict[str, Any]:
    """Measure a trained bundle on a split of a labelled manifest."""
    inner, bundle = open_bundle(job)
    cohort = open_cohort(inner, needs_labels=True, needs_splits=True)
    check_gpus(inner.config)
    slides = check_any(cohort.held_out(job.config.prediction.split), job.config.prediction.split or "val or test")
    name = claim_output(job, bundle, slides)
    record = PredictionRecord.of("evaluate", job.config, job.store, name)
    with record.opened(inner.config, bundle, cohort, slides):
        made = predict_slides(inner, cohort, slides, bundle, place=bundle_place(job), run=name, with_labels=True)
        measured, results = measure(inner, made, slides, cohort, bundle)
        record.complete(results, measured["metrics"])
    show_record(job, record.tracker)
    return {"run": name, **made.paths(job), **measured, "tracking": record.tracker.place}


def measure(
    job: Job,
    made: Predictions,
    slides: Sequence[Slide],
    cohort: Cohort,
    bundle: Bundle,
    *,
    courses: Mapping[str, Course] = MappingProxyType({}),
    split: str | None = None,
) -> tuple[dict[str, Any], list[SlideResult]]:
    """Measure predictions by split, show metrics and slides, and write them and a report beside the predictions.

    Args:
        job: Its configuration has the bundle's settings.
        made: The predictions.
        slides: The slides of the job.
        cohort: The manifest.
        bundle: The model.
        courses: Epochs of each training that made it, by name; none in an evaluation.
        split: What all slides are measured as; None: each as its own split.

    Returns:
        For the job's JSON line, metrics by split, their file, that of the report, and how many slides are wrong or in
        doubt; every slide with what became of it.
    """
    job.store.delete(f"{made.folder}/{REPORT}")  # of an earlier evaluation
    rules = Rules(
        classes=cohort.classes,
        slide_score=job.config.prediction.slide_score,
        threshold=made.threshold,
        temperature=made.temperature,
        patch_threshold=made.patch_threshold,
    )
    by_id = {slide.slide_id: slide for slide in slides}
    split_of = {slide.slide_id: split or slide.split or "all" for slide in slides}
    found = {
        name: evaluate_predictions(
            job.store,
            made.run,
            made.rows,
            [entry for entry in made.prepared.entries if split_of[entry.slide_id] == name],
            rules,
            tables=made.tables,
            patients={slide.slide_id: slide.patient_id for slide in slides},
            sites={slide.slide_id: slide.site for slide in slides},
            lesions_of=lambda one: known_lesions(by_id[one], job.config, job.store, made.prepared.patches[one]),
        )
        for name in sorted(set(split_of.values()))
    }
    for name, evaluation in found.items():
        show_metrics(job, name, evaluation)
    metrics = {name: evaluation.metrics for name, evaluation in found.items()}
    write_evaluations(job, made.folder, found)
    results = write_results(job, made.folder, made.rows, slides, cohort, threshold=made.shown_threshold)
    report = write_report(job, made.folder, bundle, cohort, results=results, found=found, courses=courses)
    files = {"metrics_file": job.store.path(f"{made.folder}/{METRICS}"), "report": report}
    return {"metrics": metrics, **files, **counts_to_look_at(results)}, results
