"""A prediction's results for people: metrics with their intervals, and the slides to look at first."""

from collections.abc import Mapping, Sequence
from typing import Any

from distmil.cohort import Cohort, Slide
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import SlideResult, slide_results, to_csv
from distmil.evaluation.words import (
    PATCH_COLUMNS,
    counts_to_look_at,
    metric_columns,
    metric_rows,
    metrics_title,
    patch_rows,
    patches_title,
    results_title,
    slide_columns,
    slide_rows,
    to_look_at,
)
from distmil.inference.tables import RESULTS, Row
from distmil.pipeline.job import Job
from distmil.tracking.links import record_lines
from distmil.tracking.tracker import Tracker

MAX_SHOWN = 20


def write_results(job: Job, folder: str, results: Sequence[SlideResult]) -> dict[str, Any]:
    """Write ``slides.csv`` with every slide of the job, and show those to look at.

    Args:
        job: Its outcomes are told which doubts are shown.
        folder: Of the predictions, in the store.
        results: See ``list_results``.

    Returns:
        For the job's JSON line: the file, and how many slides are wrong or in doubt.

    Raises:
        StorageError: If the store cannot be written.
    """
    name = f"{folder}/{RESULTS}"
    job.store.write(name, to_csv(results))
    _show_slides(job, results)
    return {"results": job.store.path(name), **counts_to_look_at(results)}


def list_results(
    job: Job, rows: Mapping[str, Row], slides: Sequence[Slide], cohort: Cohort, *, threshold: float
) -> list[SlideResult]:
    """List every slide of the job with what became of it, those to look at first on top.

    Args:
        job: Its outcomes say how the slides ended.
        rows: Slide predictions by slide id.
        slides: All slides of the job.
        cohort: For the class names.
        threshold: Of the read-out that counts.
    """
    return slide_results(
        slides,
        rows,
        classes=cohort.classes,
        threshold=threshold,
        statuses=job.outcomes.statuses,
        doubts=job.outcomes.doubts,
    )


def _show_slides(job: Job, results: Sequence[SlideResult]) -> None:
    """Show the wrong and doubtful slides; where nothing is known to compare with, all by falling probability."""
    shown, noun = to_look_at(results), job.outcomes.noun
    title = results_title(results, noun)
    if not shown:
        job.console.note(title)
    else:
        job.console.table(title, slide_columns(noun), slide_rows(shown[:MAX_SHOWN]))
        job.outcomes.shown |= {result.slide_id for result in shown[:MAX_SHOWN]}
    if len(shown) > MAX_SHOWN:
        job.console.note(f"... and {len(shown) - MAX_SHOWN} more in {RESULTS}")


def show_record(job: Job, tracker: Tracker) -> None:
    """Show how to open the job's run in MLflow, if it has one."""
    for line in record_lines(tracker):
        job.console.note(line)


def show_metrics(job: Job, split: str, evaluation: Evaluation) -> None:
    """Show the metrics of a split: slides, then patches by score, each with its 95 % interval by patient."""
    noun = job.outcomes.noun
    title = metrics_title(split, evaluation, noun)
    if not evaluation.counts:
        job.console.note(title)
        return
    job.console.table(title, metric_columns(noun), metric_rows(evaluation))
    if patches := patches_title(evaluation):
        job.console.table(patches, PATCH_COLUMNS, patch_rows(evaluation))
