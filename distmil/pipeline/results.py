"""A prediction's results for people: metrics with their intervals, the slides to look at first, and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distmil.cohort import Cohort, Slide
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import SlideResult, rows_to_csv, slide_results, to_csv
from distmil.evaluation.words import Table, metric_tables, slide_table
from distmil.inference.bundle import Bundle
from distmil.inference.tables import FROC, GROUPS, INTERVALS, METRICS, RELIABILITY, REPORT, RESULTS, Row
from distmil.pipeline.job import Job
from distmil.recording.data import data_of
from distmil.reporting.run_charts import Course
from distmil.reporting.run_report import RunReport, Thresholds
from distmil.tracking.links import record_lines
from distmil.tracking.tracker import Tracker

MAX_SHOWN = 20


def write_results(
    job: Job, folder: str, rows: Mapping[str, Row], slides: Sequence[Slide], cohort: Cohort, *, threshold: float
) -> list[SlideResult]:
    """Write ``slides.csv`` with every slide of the job, and show those to look at.

    Args:
        job: Its outcomes say how the slides ended, and note whose doubts are shown.
        folder: Of the predictions, in the store.
        rows: Slide predictions by slide id.
        slides: All slides of the job.
        cohort: For the class names.
        threshold: Of the read-out that counts.

    Returns:
        Every slide with what became of it, those to look at first on top.

    Raises:
        StorageError: If the store cannot be written.
    """
    results = slide_results(
        slides,
        rows,
        classes=cohort.classes,
        threshold=threshold,
        statuses=job.outcomes.statuses,
        doubts=job.outcomes.doubts,
    )
    job.store.write(f"{folder}/{RESULTS}", to_csv(results))
    _show_slides(job, results)
    return results


def write_evaluations(job: Job, folder: str, found: Mapping[str, Evaluation]) -> None:
    """Write metrics, intervals and the tables that are too long for the terminal, and name these.

    Args:
        job: Its store and console.
        folder: Of the predictions, in the store.
        found: Evaluations by split.
    """
    job.store.write_json(f"{folder}/{METRICS}", {split: evaluation.metrics for split, evaluation in found.items()})
    bounds = {split: {**evaluation.counts, **evaluation.intervals} for split, evaluation in found.items()}
    job.store.write_json(f"{folder}/{INTERVALS}", bounds)
    written = []
    for name in (FROC, RELIABILITY, GROUPS):
        rows = [{"split": split, **row} for split, one in found.items() for row in one.details.get(name, ())]
        if rows:
            job.store.write(f"{folder}/{name}", rows_to_csv(rows))
            written.append(name)
        else:
            job.store.delete(f"{folder}/{name}")  # of an earlier evaluation
    if written:
        job.console.note(f"more of the metrics: {', '.join(written)} in {job.store.path(folder)}")


def write_report(
    job: Job,
    folder: str,
    bundle: Bundle,
    cohort: Cohort,
    *,
    results: Sequence[SlideResult],
    found: Mapping[str, Evaluation],
    courses: Mapping[str, Course],
) -> str:
    """Write the page of a training or an evaluation, name it, and return its place.

    Args:
        job: Its configuration has the bundle's settings.
        folder: Of the predictions, in the store.
        bundle: The model.
        cohort: The manifest.
        results: Every slide of the job.
        found: Evaluations by split.
        courses: Epochs of each training by name; none in an evaluation.
    """
    data, maps = data_of(cohort, job.config), set(job.store.names(f"{folder}/maps"))

    def picture(slide_id: str) -> bytes | None:
        name = f"{slide_id}_fused.png"
        return job.store.read(f"{folder}/maps/{name}") if name in maps and job.config.prediction.maps else None

    report = RunReport(
        job="train" if courses else "evaluate",
        bundle=bundle.run,
        slides=cohort.slides,
        classes=cohort.classes,
        data=(data.name, data.digest),
        config=job.config,
        thresholds=Thresholds(bundle.slide_thresholds, bundle.patch_threshold, bundle.temperatures, bundle.metrics),
        noun=job.outcomes.noun,
        results=results,
        evaluations=found,
        courses=courses,
        picture=picture,
    )
    job.store.write(f"{folder}/{REPORT}", report.to_html())
    place = job.store.path(f"{folder}/{REPORT}")
    job.console.note(f"report: {place}")
    return place


def _show_slides(job: Job, results: Sequence[SlideResult]) -> None:
    """Show the wrong and doubtful slides; where nothing is known to compare with, all by falling probability."""
    table = slide_table(results, job.outcomes.noun)
    _show(job, replace(table, rows=table.rows[:MAX_SHOWN]))
    job.outcomes.shown |= {slide_id for slide_id, *_ in table.rows[:MAX_SHOWN]}
    if len(table.rows) > MAX_SHOWN:
        job.console.note(f"... and {len(table.rows) - MAX_SHOWN} more in {RESULTS}")


def _show(job: Job, table: Table) -> None:
    if table.rows:
        job.console.table(table.title, table.columns, table.rows)
    else:
        job.console.note(table.title)


def show_record(job: Job, tracker: Tracker) -> None:
    """Show how to open the job's run in MLflow, if it has one."""
    for line in record_lines(tracker):
        job.console.note(line)


def show_metrics(job: Job, split: str, evaluation: Evaluation) -> None:
    """Show the metrics of a split: slides, then patches by score, each with its 95 % interval by patient."""
    for table in metric_tables(split, evaluation, job.outcomes.noun):
        _show(job, table)
