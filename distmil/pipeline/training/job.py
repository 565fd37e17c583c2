"""The main job: prepare the slides, train, save the bundle, predict, evaluate, keep the record."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distmil.cohort import Cohort
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.bundle import Bundle, save_bundle, with_bundle
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.question import claim_question, make_question
from distmil.inference.tables import predictions_folder
from distmil.pipeline.evaluate import measure
from distmil.pipeline.job import Job, open_cohort
from distmil.pipeline.predict import predict_slides
from distmil.pipeline.results import show_record, write_report
from distmil.pipeline.training.folds import OUT_OF_FOLD, OutOfFold, cross_validate
from distmil.pipeline.training.network import (
    begin,
    is_labelled,
    make_bundle,
    note_record,
    note_thresholds,
    train_network,
)
from distmil.pipeline.training.record import record_training
from distmil.reporting.run_charts import Course
from distmil.tracking.server import closing_run, resolve_uri
from distmil.tracking.tracker import Tracker
from distmil.training.engine import History


def run(job: Job) -> dict[str, Any]:
    """The main job: from a manifest to a trained bundle, its metrics and its maps."""
    cohort = open_cohort(job, needs_labels=True, needs_splits=True)
    tracker = Tracker(resolve_uri(job.config.tracking.uri, job.store.root), job.config.tracking.experiment)
    with closing_run(tracker.finish):
        answer = _run(job, cohort, tracker)
    job.console.note(f"bundle: {answer['bundle']}")
    if "maps" in answer:
        job.console.note(f"maps: {answer['maps']}")
    show_record(job, tracker)
    return answer | {"tracking": tracker.place}


def _run(job: Job, cohort: Cohort, tracker: Tracker) -> dict[str, Any]:
    history, out_of_fold = History(), None
    if job.config.training.folds:
        bundle, out_of_fold = cross_validate(job, cohort, tracker)
        courses = out_of_fold.courses
    else:
        bundle, history = train(job, cohort, tracker)
        courses = {"": Course(history.rows, bundle.metrics["epoch"])}
    run = bundle.run
    name, results, answer = _predict(job, cohort, bundle, out_of_fold, courses=courses)
    record_training(
        job,
        tracker,
        bundle=bundle,
        history=history,
        cohort=cohort,
        name=name,
        results=results,
        metrics=answer["metrics"],
    )
    note_record(job, tracker, run)
    extent = {"folds": len(bundle.heads)} if out_of_fold else {"epochs": len(history.rows)}
    return {"run": run, "bundle": job.store.path(bundle_folder(run)), **extent, **answer}


def _predict(
    job: Job, cohort: Cohort, bundle: Bundle, out_of_fold: OutOfFold | None, *, courses: Mapping[str, Course]
) -> tuple[str, list[SlideResult], dict[str, Any]]:
    """Predict and measure the slides that are held out, where there are any.

    Returns:
        The name of the predictions, the slides with what became of them, and what the job's JSON line says of them.
    """
    slides, place = cohort.held_out(job.config.prediction.split), job.store.path(bundle_folder(bundle.run))
    measured: dict[str, Any] = {"metrics": {}}
    if out_of_fold:
        measured = {"metrics": out_of_fold.metrics, OUT_OF_FOLD: out_of_fold.place}
        if not slides:
            return out_of_fold.run, out_of_fold.results, measured
    name = job.config.prediction.run or bundle.run
    if slides:
        bundle.check_gives(job.config.prediction.slide_score)
    claim_question(job.store, name, make_question(bundle.digest, slides), owner=bundle.run)
    if not slides:
        report = write_report(job, predictions_folder(name), bundle, cohort, results=[], found={}, courses=courses)
        return name, [], {**measured, "report": report}
    inner = replace(job, config=with_bundle(job.config, bundle))
    predictions = predict_slides(inner, cohort, slides, bundle, place=place, run=name, with_labels=True)
    found, results = measure(inner, predictions, slides, cohort, bundle, courses=courses)
    metrics = {"metrics": {**measured["metrics"], **found["metrics"]}}
    return name, results, {**predictions.paths(job), **measured, **found, **metrics}


def train(job: Job, cohort: Cohort, tracker: Tracker) -> tuple[Bundle, History]:
    """Train a run to its end, going on where an earlier call of the same run stopped, and save its bundle.

    Raises:
        ConfigError: If the run's name belongs to other settings or data, or its resources are not there.
        TrainingError: If there is nothing to train on, or the loss is not finite.
        StorageError: If the store cannot be written.
    """
    begun = begin(job, cohort, tracker)
    trained = train_network(job, begun, tracker)
    num_scored = sum(entry.split == "val" and is_labelled(entry) for entry in begun.prepared.entries)
    note_thresholds(job, trained.row, num_slides=num_scored, noun=cohort.noun)
    metrics = {
        "epoch": trained.epoch,
        "epochs": len(trained.history.rows),
        "last": trained.row,
        "threshold_aim": job.config.training.threshold_aim,
    }
    bundle = make_bundle(job, begun.run, begun, [trained], trained.row, metrics=metrics)
    record = save_bundle(job.store, bundle)
    return replace(bundle, digest=record.digest), trained.history
