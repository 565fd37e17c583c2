"""The main job: prepare the slides, train, save the bundle, predict, evaluate, keep the record."""

from dataclasses import replace
from typing import Any

from distmil.cohort import Cohort
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.bundle import Bundle, save_bundle, with_bundle
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.question import claim_question, make_question
from distmil.pipeline.evaluate import measure
from distmil.pipeline.job import Job, open_cohort
from distmil.pipeline.predict import predict_slides
from distmil.pipeline.results import show_record
from distmil.pipeline.training.folds import OUT_OF_FOLD, cross_validate
from distmil.pipeline.training.network import (
    begin,
    is_labelled,
    make_bundle,
    note_record,
    note_thresholds,
    train_network,
)
from distmil.pipeline.training.record import record_training
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
    out_of_fold, history = None, History()
    if job.config.training.folds:
        bundle, out_of_fold = cross_validate(job, cohort, tracker)
    else:
        bundle, history = train(job, cohort, tracker)
    run, place = bundle.run, job.store.path(bundle_folder(bundle.run))
    slides = cohort.held_out(job.config.prediction.split)
    predictions, shown = None, None if out_of_fold is None else out_of_fold.run
    results, measured = list[SlideResult](), dict[str, Any](metrics={})
    if slides:
        inner = replace(job, config=with_bundle(job.config, bundle))
        bundle.check_gives(inner.config.prediction.slide_score)
        name = job.config.prediction.run or run
        claim_question(job.store, name, make_question(bundle.digest, slides), owner=run)
        predictions = predict_slides(inner, cohort, slides, bundle, place=place, run=name, with_labels=True)
        measured, results = measure(inner, predictions, slides, cohort)
        shown = predictions.run
    elif out_of_fold:
        results = out_of_fold.results
    if out_of_fold:
        measured |= {"metrics": out_of_fold.metrics | measured["metrics"], OUT_OF_FOLD: out_of_fold.place}
    record_training(
        job,
        tracker,
        bundle=bundle,
        history=history,
        cohort=cohort,
        name=shown,
        results=results,
        metrics=measured["metrics"],
    )
    note_record(job, tracker, run)
    extent = {"folds": len(bundle.heads)} if out_of_fold else {"epochs": len(history.rows)}
    answer = {"run": run, "bundle": place, **extent}
    return answer | (predictions.paths(job) if predictions else {}) | measured


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
    metrics = {"epoch": trained.epoch, "epochs": len(trained.history.rows), "last": trained.row}
    bundle = make_bundle(job, begun.run, begun, [trained], trained.row, metrics=metrics)
    record = save_bundle(job.store, bundle)
    return replace(bundle, digest=record.digest), trained.history
