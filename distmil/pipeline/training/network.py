"""From a manifest to a trained network and its bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distmil.bags.bag import BagEntry, open_source
from distmil.cohort import Cohort
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec, encoder_state
from distmil.inference.bundle import Bundle
from distmil.inference.question import check_owner
from distmil.inference.scoring import READ_OUTS
from distmil.inference.shift import reach_of, sampled, usual_patches
from distmil.inference.thresholds import describe_thresholds, temperatures_of, threshold_of
from distmil.models.network import Network
from distmil.models.regions import PatchEvidence
from distmil.pipeline.job import Job, open_encoder
from distmil.pipeline.prepare import Prepared, prepare
from distmil.pipeline.training.claim import Claim, announce, check_classes, read_record_id, write_record_id
from distmil.pipeline.training.workers import check_workers, fit
from distmil.recording.data import data_of
from distmil.recording.description import job_tags
from distmil.storage.store import Store
from distmil.tracking.provenance import code_tags
from distmil.tracking.system_metrics import system_metrics
from distmil.tracking.tracker import Tracker
from distmil.training.checkpoints import load_checkpoint
from distmil.training.engine import History
from distmil.training.learner import Nets
from distmil.training.run import new_learner, trained_encoder

Row = dict[str, float | None]


@dataclass(frozen=True)
class Begun:
    """A training whose slides are prepared and whose name is claimed."""

    run: str
    spec: EncoderSpec
    prepared: Prepared
    config: Config
    """With the losses that the slides can teach."""


@dataclass(frozen=True)
class Trained:
    """The network that a finished training keeps."""

    nets: Nets
    epoch: int
    """Of the history."""
    history: History

    @property
    def row(self) -> Row:
        """Return the metrics of the epoch whose weights these are."""
        return self.history.rows[self.epoch]


def begin(job: Job, cohort: Cohort, tracker: Tracker) -> Begun:
    """Prepare the slides of train and val, claim the run's name, and open its record.

    Raises:
        ConfigError: If the run's name belongs to other settings or data, or its resources are not there.
        TrainingError: If there is nothing to train on.
        StorageError: If the store cannot be written.
    """
    spec = open_encoder(job)
    trained_encoder(job.config, spec, job.store)  # what cannot be trained is refused before hours of tiling
    claim = Claim(job, spec, cohort, job.config.training.run, "train")
    claim.check()
    check_workers(job)
    prepared = prepare(job, cohort.of_split("train", "val"), spec, with_labels=True, learns=True)
    check_classes(prepared, cohort)
    run = claim.take(prepared)
    check_owner(job.store, job.config.prediction.run or run, owner=run)
    open_record(job, tracker, run)
    tracker.log_params(job.config, **{"data.fingerprint": cohort.fingerprint, "encoder.digest": spec.digest})
    tracker.log_data(data_of(cohort, job.config), context="training")
    return Begun(run, spec, prepared, announce(job, prepared, cohort))


def open_record(job: Job, tracker: Tracker, run: str, **tags: str) -> None:
    """Open the MLflow run of a training, or go on with the one that it had."""
    artifacts = job.store.path("mlflow-artifacts")
    tags = {**job_tags("train"), **code_tags(), **tags}
    tracker.start(run, artifacts=artifacts, resume=read_record_id(job, run), tags=tags)
    note_record(job, tracker, run)


def note_record(job: Job, tracker: Tracker, run: str) -> None:
    """Note which MLflow run goes on when this one does; it may have opened late."""
    if tracker.run_id is not None:
        write_record_id(job.store, run, tracker.run_id)


def train_network(job: Job, begun: Begun, tracker: Tracker) -> Trained:
    """Train a claimed run to its end, and load the network that it keeps.

    Raises:
        TrainingError: If the loss is not finite, or the workers failed more often than they may.
        StorageError: If the store cannot be written.
    """
    with system_metrics(tracker, is_wanted=job.config.tracking.system_metrics):
        history = fit(job, begun.config, begun.run, begun.spec, tracker)
    learner = new_learner(begun.config, begun.spec, job.store, device=torch.device("cpu"))
    is_best = job.config.training.patience > 0
    load_checkpoint(job.store, begun.run, learner, best=is_best)
    return Trained(learner.eval_model, history.best_epoch if is_best else len(history.rows) - 1, history)


def make_bundle(
    job: Job, run: str, begun: Begun, trained: Sequence[Trained], row: Row, *, metrics: dict[str, Any]
) -> Bundle:
    """Put together a bundle of trained networks.

    Args:
        job: The training job.
        run: The bundle's name.
        begun: The training.
        trained: The networks, one or those of several folds.
        row: Metrics, each under ``val_`` and its name, whose thresholds, temperatures and evidence the bundle takes.
        metrics: What the bundle says of itself.
    """
    heads = tuple(one.nets.head for one in trained)
    return Bundle(
        run=run,
        config=job.config,
        heads=heads,
        encoder_state=encoder_state(begun.spec, job.store, trained=trained[0].nets.encoder),
        patch_threshold=threshold_of(row, "patch"),
        slide_thresholds={name: threshold_of(row, name) for name in READ_OUTS},
        temperatures=temperatures_of(row, READ_OUTS),
        reach=_reach(job.store, job.config, begun.prepared.entries, heads),
        usual_patches=usual_patches([entry.num_patches for entry in begun.prepared.entries if entry.split == "train"]),
        evidence=PatchEvidence.in_row(row),
        metrics=metrics,
    )


def note_thresholds(job: Job, row: Row, *, num_slides: int, noun: str, where: str = "validation") -> None:
    """Show the thresholds that a bundle takes, and whether a temperature is wanted that it does not have."""
    aim, wanted = job.config.training.threshold_aim, job.config.prediction
    job.console.note(describe_thresholds(row, num_slides=num_slides, noun=noun, aim=aim, where=where))
    if wanted.calibrated and wanted.slide_score not in temperatures_of(row, READ_OUTS):
        job.console.note(f"prediction.calibrated: {where} gave no temperature of {wanted.slide_score}; not calibrated")


def is_labelled(entry: BagEntry) -> bool:
    """Tell whether a slide has a label that somebody gave, by which it can be scored."""
    return entry.label is not None and not entry.is_pseudo


def _reach(store: Store, config: Config, entries: Sequence[BagEntry], heads: Sequence[Network]) -> float | None:
    """Measure how far some training slides lie from their mean, a mean over networks as scores are.

    None where their embeddings are not kept.
    """
    learned = [] if config.encoder.trainable else [entry for entry in entries if entry.split == "train"]
    found = []
    for head in heads:
        sources = (open_source(store, entry)[0] for entry in sampled(learned))
        found.append(reach_of(head.normaliser, sources, seed=config.training.seed))
    known = [reach for reach in found if reach is not None]
    return sum(known) / len(known) if known else None
