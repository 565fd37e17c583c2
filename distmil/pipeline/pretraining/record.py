"""The record of a finished pre-training in MLflow: measures, weights' history, and the configuration."""

import tempfile
from pathlib import Path

import yaml

from distmil.cohort import Cohort
from distmil.pipeline.job import Job
from distmil.pipeline.pretraining.progress import verdict
from distmil.pipeline.training.record import shareable
from distmil.pretraining.history import History
from distmil.pretraining.weights import CONFIG, WEIGHTS, weights_folder
from distmil.recording.data import data_of
from distmil.recording.description import command_of, describe_run
from distmil.tracking.tracker import Tracker


def record_pretraining(job: Job, tracker: Tracker, *, name: str, history: History, cohort: Cohort) -> None:
    """Record every epoch's measures, the description, the configuration and the files beside the weights.

    Args:
        job: The job, with its configuration as the user gave it.
        tracker: Its run.
        name: The run's name.
        history: What was measured.
        cohort: The manifest.
    """
    tracker.flush()  # files do not wait: whether MLflow answers is worth finding out now
    tracker.sync(history.rows)
    title = f"**Pre-training** of `{job.config.encoder.name}`, {history.epochs_done} epochs: `{name}`"
    command = command_of("pretrain", job.config)
    tracker.set_tags(describe_run(title, data_of(cohort, job.config), [verdict(history)], command))
    folder = weights_folder(name)
    with tempfile.TemporaryDirectory(prefix="distmil-") as scratch:
        root = Path(scratch)
        (root / "config.yaml").write_text(yaml.safe_dump(shareable(job), sort_keys=False), encoding="utf-8")
        tracker.log_artifact(root / "config.yaml")
        kept = root / "pretrained"
        kept.mkdir()
        for file in job.store.names(folder):
            if file not in {WEIGHTS, CONFIG}:  # weights may be large, and the store has them
                (kept / file).write_bytes(job.store.read(f"{folder}/{file}"))
        tracker.log_artifact(kept, "pretrained")
