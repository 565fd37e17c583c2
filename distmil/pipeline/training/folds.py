"""Cross-validation: every train slide is predicted by a network that learned nothing of its patient.

The bundle averages the networks of all folds; its thresholds come from the predictions out of fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from distmil.bags.bag import BagEntry, open_all_bags
from distmil.cohort import Cohort, Slide
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.bundle import Bundle, save_bundle, with_bundle
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.question import claim_question, make_question
from distmil.pipeline.evaluate import measure
from distmil.pipeline.job import Job
from distmil.pipeline.predict import FoldSlides, predict_out_of_fold
from distmil.pipeline.training.claim import Claim
from distmil.pipeline.training.network import (
    Begun,
    Row,
    Trained,
    begin,
    is_labelled,
    make_bundle,
    note_record,
    note_thresholds,
    open_record,
    train_network,
)
from distmil.reporting.run_charts import Course
from distmil.search.folds import patient_folds
from distmil.tracking.server import closing_run
from distmil.tracking.tracker import Tracker
from distmil.training.engine import measure_scores, score_slide
from distmil.training.workers import Workers

OUT_OF_FOLD = "out_of_fold"
S = TypeVar("S", Slide, BagEntry)


@dataclass(frozen=True)
class OutOfFold:
    """The predictions of train slides, each by a network that did not learn from it."""

    run: str
    """Name of the predictions."""
    place: str
    results: list[SlideResult]
    metrics: dict[str, Any]
    courses: dict[str, Course]
    """Epochs of each fold."""


def cross_validate(job: Job, cohort: Cohort, tracker: Tracker) -> tuple[Bundle, OutOfFold]:
    """Train a network without each fold, predict the fold with it, and save the bundle of all networks.

    Each fold is a run of its own, ``<run>-fold-<number>``, which goes on where it stopped.

    Raises:
        ConfigError: If there are too few patients, or a name belongs to something else.
        TrainingError: If there is nothing to train on, or the loss is not finite.
        StorageError: If the store cannot be written.
    """
    begun = begin(job, cohort, tracker)
    usable = {entry.slide_id for entry in begun.prepared.entries}
    slides = [slide for slide in cohort.of_split("train") if slide.slide_id in usable]
    count, seed = job.config.training.folds, job.config.training.seed
    held = [ids for _, ids in patient_folds(slides, count=count, seed=seed, key="training.folds")]
    folds = _Folds(job, replace(cohort, slides=slides), begun, held)
    trained = [folds.train(fold, tracker) for fold in range(count)]
    row = folds.measure(trained)
    note_thresholds(job, row, num_slides=len(slides), noun=cohort.noun, where="out-of-fold")
    bundles = [
        folds.save(folds.run(fold), [one], row, {"epoch": one.epoch, "epochs": len(one.history.rows), "last": one.row})
        for fold, one in enumerate(trained)
    ]
    about = {"folds": [dict(one.metrics) for one in bundles], "last": row}
    bundle = folds.save(begun.run, trained, row, {**about, "threshold_aim": job.config.training.threshold_aim})
    courses = {f"fold {i}": Course(one.history.rows, one.epoch) for i, one in enumerate(trained, 1)}
    return bundle, folds.predict(bundle, bundles, courses)


@dataclass(frozen=True)
class _Folds:
    """The folds of a training."""

    job: Job
    cohort: Cohort
    """Its usable train slides."""
    begun: Begun
    held: Sequence[Sequence[str]]
    """Ids of the slides that each fold holds out."""

    def run(self, fold: int) -> str:
        """Name the run that trains without a fold."""
        return f"{self.begun.run}-fold-{fold + 1}"

    def train(self, fold: int, parent: Tracker) -> Trained:
        """Train without a fold, whose slides are the validation; those of val itself take no part."""
        job, run, held = self.job, self.run(fold), set(self.held[fold])
        job.console.note(f"fold {fold + 1} of {len(self.held)}: validation on {len(held)} {self.cohort.noun}s")
        cohort = replace(self.cohort, slides=[_moved(slide, held) for slide in self.cohort.slides])
        entries = [_moved(entry, held) for entry in self.begun.prepared.entries if entry.split == "train"]
        prepared = replace(self.begun.prepared, entries=entries)
        Claim(job, self.begun.spec, cohort, run, "train").take(prepared)
        tracker = Tracker(parent.uri, parent.experiment)
        with closing_run(tracker.finish):
            open_record(job, tracker, run, **{"mlflow.parentRunId": str(parent.run_id), "distmil.kind": "fold"})
            trained = train_network(job, replace(self.begun, run=run, prepared=prepared), tracker)
            tracker.sync(trained.history.rows)
            note_record(job, tracker, run)
        return trained

    def measure(self, trained: Sequence[Trained]) -> Row:
        """Score every fold by its network, and compute the metrics of all slides, each under ``val_`` and its name."""
        fold_of = {slide_id: fold for fold, ids in enumerate(self.held) for slide_id in ids}
        entries = [entry for entry in self.begun.prepared.entries if entry.slide_id in fold_of and is_labelled(entry)]
        config = self.job.config
        bags = open_all_bags(self.job.store, entries, num_classes=len(config.cohort.classes), form=config.labels.form)
        scores = {}
        for i, bag in enumerate(bags):
            nets = trained[fold_of[bag.slide_id]].nets
            nets.train(False)
            scores[i] = score_slide(nets, bag, config, device=torch.device("cpu"))
        row = measure_scores(bags, scores, config, workers=Workers())
        return {f"val_{name}": value for name, value in row.items()}

    def save(self, run: str, trained: Sequence[Trained], row: Row, metrics: dict[str, Any]) -> Bundle:
        """Save the bundle of one network or of all."""
        bundle = make_bundle(self.job, run, self.begun, trained, row, metrics=metrics)
        return replace(bundle, digest=save_bundle(self.job.store, bundle).digest)

    def predict(self, bundle: Bundle, bundles: Sequence[Bundle], courses: dict[str, Course]) -> OutOfFold:
        """Predict every fold by its own bundle, and measure all slides together."""
        job = replace(self.job, config=with_bundle(self.job.config, bundle))
        bundle.check_gives(job.config.prediction.slide_score)
        slides, name = self.cohort.slides, f"{bundle.run}-out-of-fold"
        claim_question(job.store, name, make_question(bundle.digest, slides), owner=bundle.run)
        by_id = {slide.slide_id: slide for slide in slides}
        parts = [
            FoldSlides([by_id[i] for i in ids], one, job.store.path(bundle_folder(one.run)))
            for ids, one in zip(self.held, bundles, strict=True)
        ]
        made = predict_out_of_fold(job, self.cohort, parts, bundle, run=name)
        measured, results = measure(job, made, slides, self.cohort, bundle, courses=courses, split=OUT_OF_FOLD)
        return OutOfFold(name, job.store.path(made.folder), results, measured["metrics"], courses)


def _moved(one: S, held: set[str]) -> S:
    return replace(one, split="val" if one.slide_id in held else "train")
