"""The job `pretrain`: tile the train slides, pre-train an encoder on their patches, and leave its weights.

No patch of a slide in val or test is seen.
"""

from dataclasses import replace
from typing import Any

import torch

from distmil.cohort import Cohort
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec, prepare_encoder
from distmil.errors import TrainingError
from distmil.pipeline.job import Job, open_cohort, open_encoder
from distmil.pipeline.prepare import Prepared, prepare
from distmil.pipeline.pretraining.progress import verdict
from distmil.pipeline.pretraining.record import record_pretraining
from distmil.pipeline.pretraining.workers import fit
from distmil.pipeline.results import show_record
from distmil.pipeline.training.claim import Claim, read_record_id, write_record_id
from distmil.pipeline.training.workers import check_resources
from distmil.preflight.claims import PRETRAINING
from distmil.pretraining.checkpoints import load_checkpoint
from distmil.pretraining.history import History
from distmil.pretraining.learner import make_learner
from distmil.pretraining.run import encoder_to_train, plan_of
from distmil.pretraining.weights import save_weights, weights_folder
from distmil.recording.data import data_of
from distmil.recording.description import job_tags
from distmil.storage.store import Store
from distmil.tracking.provenance import code_tags
from distmil.tracking.server import closing_run, resolve_uri
from distmil.tracking.system_metrics import system_metrics
from distmil.tracking.tracker import Tracker


def run(job: Job) -> dict[str, Any]:
    """Pre-train an encoder on the patches of the train slides."""
    cohort = open_cohort(job, needs_labels=False, needs_splits=True)
    tracker = Tracker(resolve_uri(job.config.tracking.uri, job.store.root), job.config.tracking.experiment)
    with closing_run(tracker.finish):
        answer = _run(job, cohort, tracker)
    job.console.note(f"weights: {answer['weights']}")
    show_record(job, tracker)
    return answer | {"tracking": tracker.place}


def _run(job: Job, cohort: Cohort, tracker: Tracker) -> dict[str, Any]:
    inner = replace(job, config=config_of_part(job.config))
    spec = open_encoder(inner)
    encoder_to_train(inner.config, spec, job.store)  # what cannot be trained is refused before hours of tiling
    claim = Claim(inner, spec, cohort, job.config.pretraining.run, "pretrain")
    claim.check()
    check_resources(job.config)
    prepared = _prepare(inner, cohort, spec)
    plan_of(inner.config, prepared.entries)
    run = claim.take(prepared)
    name = run.removeprefix(PRETRAINING)
    tags = {**job_tags("pretrain"), **code_tags()}
    tracker.start(run, artifacts=job.store.path("mlflow-artifacts"), resume=read_record_id(job, run), tags=tags)
    _note_record(job.store, tracker, run)
    tracker.log_params(job.config, **{"data.fingerprint": cohort.fingerprint, "encoder.digest": spec.digest})
    tracker.log_data(data_of(cohort, job.config), context="training")
    with system_metrics(tracker, is_wanted=job.config.tracking.system_metrics):
        fit(inner, run, spec, prepared.entries, tracker)
    history, digest = _save(inner, run, spec)
    job.console.note(verdict(history))
    record_pretraining(job, tracker, name=name, history=history, cohort=cohort)
    _note_record(job.store, tracker, run)
    rows = {"before": history.rows[0], "after": history.rows[-1]}
    return {
        "run": name,
        "weights": job.store.path(weights_folder(name)),
        "digest": digest,
        "epochs": history.epochs_done,
        "steps": len(history.losses),
        "probe": history.probe,
        **rows,
    }


def config_of_part(config: Config) -> Config:
    """Leave of encoders side by side the one that has weights.

    A slide with a bad annotation stays in: its labels serve the probe alone.
    """
    encoder = config.encoder.only(config.encoder.part_with_weights)
    labels = config.labels.model_copy(update={"on_bad_annotation": "label_only"})
    return config.model_copy(update={"encoder": encoder, "labels": labels})


def _prepare(job: Job, cohort: Cohort, spec: EncoderSpec) -> Prepared:
    """Tile and label the train slides as for a trainable encoder."""
    encoder = job.config.encoder.model_copy(update={"trainable": True, "views": 0})
    from_images = replace(job, config=job.config.model_copy(update={"encoder": encoder}))
    return prepare(from_images, cohort.of_split("train"), spec, with_labels=True, learns=True)


def _save(job: Job, run: str, spec: EncoderSpec) -> tuple[History, str]:
    """Save the encoder of a finished run, and return its history and the digest of its weights.

    The folder is read back as every job does.

    Raises:
        TrainingError: If the encoder collapsed.
    """
    store, name = job.store, run.removeprefix(PRETRAINING)
    encoder = encoder_to_train(job.config, spec, store)
    learner = make_learner(job.config, encoder, width=spec.dimension, device=torch.device("cpu"))
    history = load_checkpoint(store, run, learner)
    assert history is not None
    if collapse := history.collapse:
        raise TrainingError(
            f"pre-training {name} is of no use, and its weights are not kept: {collapse}. Lower "
            "pretraining.learning_rate, raise pretraining.batch_patches, or take pretraining.method=vicreg, under "
            "another pretraining.run"
        )
    save_weights(store, name, learner.kept, spec, history)
    place = store.path(weights_folder(name))
    encoder_config = job.config.encoder.model_copy(update={"weights": place})
    return history, prepare_encoder(encoder_config, store).digest


def _note_record(store: Store, tracker: Tracker, run: str) -> None:
    """Note which MLflow run goes on when this one does; it may have opened late."""
    if tracker.run_id is not None:
        write_record_id(store, run, tracker.run_id)
