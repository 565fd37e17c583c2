"""The main job: prepare the slides, train, save the bundle, predict, evaluate, keep the record."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from distmil.bags.bag import BagEntry, open_source
from distmil.cohort import Cohort
from distmil.encoders.registry import encoder_state
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.bundle import Bundle, save_bundle, with_bundle
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.question import check_owner, claim_question, make_question
from distmil.inference.scoring import READ_OUTS
from distmil.inference.shift import reach_of, sampled, usual_patches
from distmil.inference.tables import predictions_folder
from distmil.inference.thresholds import describe_thresholds, temperatures_of, threshold_of
from distmil.models.normaliser import Normaliser
from distmil.models.regions import PatchEvidence
from distmil.pipeline.evaluate import measure
from distmil.pipeline.job import Job, open_cohort, open_encoder
from distmil.pipeline.predict import predict_slides
from distmil.pipeline.prepare import prepare
from distmil.pipeline.results import show_record, write_report
from distmil.pipeline.training.claim import Claim, announce, check_classes, read_record_id, write_record_id
from distmil.pipeline.training.record import record_training
from distmil.pipeline.training.workers import check_workers, fit
from distmil.recording.data import data_of
from distmil.recording.description import job_tags
from distmil.reporting.run_charts import Course
from distmil.tracking.provenance import code_tags
from distmil.tracking.server import closing_run, resolve_uri
from distmil.tracking.system_metrics import system_metrics
from distmil.tracking.tracker import Tracker
from distmil.training.checkpoints import load_checkpoint
from distmil.training.engine import History
from distmil.training.run import new_learner, trained_encoder


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
    bundle, history = train(job, cohort, tracker)
    run, place = bundle.run, job.store.path(bundle_folder(bundle.run))
    slides = cohort.held_out(job.config.prediction.split)
    predictions, results, measured = None, list[SlideResult](), dict[str, Any](metrics={})
    name = job.config.prediction.run or run
    if slides:
        bundle.check_gives(job.config.prediction.slide_score)
    claim_question(job.store, name, make_question(bundle.digest, slides), owner=run)
    courses = {"": Course(history.rows, bundle.metrics["epoch"])}
    if slides:
        inner = replace(job, config=with_bundle(job.config, bundle))
        predictions = predict_slides(inner, cohort, slides, bundle, place=place, run=name, with_labels=True)
        measured, results = measure(inner, predictions, slides, cohort, bundle, courses=courses)
    else:
        folder = predictions_folder(name)
        measured["report"] = write_report(job, folder, bundle, cohort, results=[], found={}, courses=courses)
    record_training(
        job,
        tracker,
        bundle=bundle,
        history=history,
        cohort=cohort,
        name=name,
        results=results,
        metrics=measured["metrics"],
    )
    _note_record(job, tracker, run)
    answer = {"run": run, "bundle": place, "epochs": len(history.rows)}
    return answer | (predictions.paths(job) if predictions else {}) | measured


def train(job: Job, cohort: Cohort, tracker: Tracker) -> tuple[Bundle, History]:
    """Train a run to its end, going on where an earlier call of the same run stopped, and save its bundle.

    Raises:
        ConfigError: If the run's name belongs to other settings or data, or its resources are not there.
        TrainingError: If there is nothing to train on, or the loss is not finite.
        StorageError: If the store cannot be written.
    """
    spec = open_encoder(job)
    trained_encoder(job.config, spec, job.store)  # what cannot be trained is refused before hours of tiling
    claim = Claim(job, spec, cohort, job.config.training.run, "train")
    claim.check()
    check_workers(job)
    used = cohort.of_split("train", "val")
    prepared = prepare(job, used, spec, with_labels=True, learns=True)
    check_classes(prepared, cohort)
    run = claim.take(prepared)
    check_owner(job.store, job.config.prediction.run or run, owner=run)
    artifacts = job.store.path("mlflow-artifacts")
    tags = {**job_tags("train"), **code_tags()}
    tracker.start(run, artifacts=artifacts, resume=read_record_id(job, run), tags=tags)
    _note_record(job, tracker, run)
    tracker.log_params(job.config, **{"data.fingerprint": cohort.fingerprint, "encoder.digest": spec.digest})
    tracker.log_data(data_of(cohort, job.config), context="training")
    config = announce(job, prepared, cohort)
    with system_metrics(tracker, is_wanted=job.config.tracking.system_metrics):
        history = fit(job, config, run, spec, tracker)
    learner = new_learner(config, spec, job.store, device=torch.device("cpu"))
    is_best = job.config.training.patience > 0
    load_checkpoint(job.store, run, learner, best=is_best)
    chosen = history.best_epoch if is_best else len(history.rows) - 1
    row = history.rows[chosen]
    num_scored = sum(map(_is_scored, prepared.entries))
    aim = job.config.training.threshold_aim
    job.console.note(describe_thresholds(row, num_slides=num_scored, noun=cohort.noun, aim=aim))
    temperatures, wanted = temperatures_of(row, READ_OUTS), job.config.prediction
    if wanted.calibrated and wanted.slide_score not in temperatures:
        job.console.note(
            f"prediction.calibrated: validation gave no temperature of {wanted.slide_score}; not calibrated"
        )
    bundle = Bundle(
        run=run,
        config=job.config,
        head=learner.eval_model.head,
        encoder_state=encoder_state(spec, job.store, trained=learner.eval_model.encoder),
        patch_threshold=threshold_of(row, "patch"),
        slide_thresholds={name: threshold_of(row, name) for name in READ_OUTS},
        temperatures=temperatures,
        reach=_reach(job, prepared.entries, learner.eval_model.head.normaliser),
        usual_patches=usual_patches([entry.num_patches for entry in prepared.entries if entry.split == "train"]),
        evidence=PatchEvidence.in_row(row),
        metrics={"epoch": chosen, "epochs": len(history.rows), "last": row, "threshold_aim": aim},
    )
    record = save_bundle(job.store, bundle)
    return replace(bundle, digest=record.digest), history


def _reach(job: Job, entries: Sequence[BagEntry], normaliser: Normaliser) -> float | None:
    """Measure how far some training slides lie from their mean; None where their embeddings are not kept."""
    learned = [] if job.config.encoder.trainable else [entry for entry in entries if entry.split == "train"]
    sources = (open_source(job.store, entry)[0] for entry in sampled(learned))
    return reach_of(normaliser, sources, seed=job.config.training.seed)


def _is_scored(entry: BagEntry) -> bool:
    return entry.split == "val" and entry.label is not None and not entry.is_pseudo


def _note_record(job: Job, tracker: Tracker, run: str) -> None:
    """Note which MLflow run goes on when this one does; it may have opened late."""
    if tracker.run_id is not None:
        write_record_id(job.store, run, tracker.run_id)
