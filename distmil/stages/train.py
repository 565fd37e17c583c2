"""The main job: prepare the slides, train, save the bundle, predict, evaluate, keep the record."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distmil.bags import Bag, open_bag
from distmil.bundles import Bundle, bundle_folder, save_bundle, with_bundle
from distmil.checkpoints import checkpoint_folder, load_checkpoint
from distmil.cohort import Cohort
from distmil.config import Config, fingerprint
from distmil.configfile import per_job_keys
from distmil.encoders import EncoderSpec, encoder_state, prepare_encoder
from distmil.engine import History, active_config
from distmil.errors import ConfigError, StorageError, TrainingError
from distmil.sampling import StepPlanner
from distmil.stages.evaluate import measure
from distmil.stages.fit import fit
from distmil.stages.inputs import held_out_slides, open_cohort
from distmil.stages.predict import judge_slides
from distmil.stages.prepare import Prepared, prepare
from distmil.stages.record import record_training
from distmil.stages.runtime import Job
from distmil.stages.worker import new_learner, run_file
from distmil.steps import LOSSES
from distmil.storage import Store
from distmil.tracking import Tracker, resolve_uri

KINDS = ("negative", "annotated", "part annotated", "label only")


def run(job: Job) -> dict[str, Any]:
    """The main job: from a manifest to a trained bundle, its metrics and its maps."""
    cohort = open_cohort(job, needs_labels=True, needs_splits=True)
    tracker = Tracker(resolve_uri(job.config.tracking.uri, job.store.root), job.config.tracking.experiment)
    status = "FAILED"
    try:
        answer = _run(job, cohort, tracker)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    job.console.note(f"bundle: {answer['bundle']}")
    if "maps" in answer:
        job.console.note(f"maps: {answer['maps']}")
    if tracker.run_id is not None:
        is_local = str(tracker.uri).startswith("sqlite:")
        job.console.note(f"record: {'mlflow ui --backend-store-uri ' if is_local else ''}{tracker.uri}")
    return answer | {"tracking": {"uri": tracker.uri, "experiment": tracker.experiment, "run_id": tracker.run_id}}


def _run(job: Job, cohort: Cohort, tracker: Tracker) -> dict[str, Any]:
    trained = train(job, cohort, tracker)
    place = bundle_folder(trained.run)
    slides = held_out_slides(job, cohort)
    predictions, metrics = None, {}
    if slides:
        inner = replace(job, config=with_bundle(job.config, trained.bundle, per_job=per_job_keys()))
        name = job.config.prediction.run or trained.run
        where = job.store.path(place)
        predictions = judge_slides(inner, cohort, slides, trained.bundle, place=where, run=name, with_labels=True)
        metrics = measure(inner, predictions, slides, cohort)
    job.store.write_json(f"{place}/metrics.json", {**trained.bundle.metrics, **metrics})
    record_training(
        job,
        tracker,
        run=trained.run,
        digest=trained.bundle.digest,
        step=len(trained.history.rows) - 1,
        predictions=predictions,
        metrics=metrics,
    )
    answer = {
        "run": trained.run,
        "bundle": job.store.path(place),
        "epochs": len(trained.history.rows),
        "metrics": metrics,
    }
    return answer | (predictions.paths(job) if predictions else {})


@dataclass(frozen=True)
class Trained:
    """What training made."""

    run: str
    bundle: Bundle
    history: History


def train(job: Job, cohort: Cohort, tracker: Tracker) -> Trained:
    """Train a run to its end, going on where an earlier call of the same run stopped, and save its bundle.

    Raises:
        ConfigError: If the run's name belongs to other settings or data, or its resources are not there.
        TrainingError: If there is nothing to train on, or the loss is not finite.
        StorageError: If the store cannot be written.
    """
    spec = prepare_encoder(job.config.encoder, job.store)
    used = cohort.of_split("train", "val")
    prepared = prepare(job, used, spec, with_labels=True, from_images=job.config.encoder.trainable)
    _check_classes(prepared, cohort)
    run = _claim_run(job, prepared, spec, cohort)
    tracker.start(
        run, artifacts=job.store.path("mlflow-artifacts"), resume=_read_or_none(job.store, run_file(run, "mlflow"))
    )
    if tracker.run_id is not None:
        job.store.write_json(run_file(run, "mlflow"), tracker.run_id)
    tracker.log_params(job.config, **{"data.fingerprint": cohort.fingerprint, "encoder.digest": spec.digest})
    config = _announce(job, prepared)
    job.store.write_json(run_file(run, "cohort"), [entry.to_json() for entry in prepared.entries])
    history = fit(job, config, run, spec, tracker)
    learner = new_learner(config, spec, job.store, device=torch.device("cpu"))
    is_best = job.config.training.patience > 0
    load_checkpoint(job.store, run, learner, best=is_best)
    chosen = history.best_epoch if is_best else len(history.rows) - 1
    bundle = Bundle(
        run=run,
        config=job.config,
        head=learner.judging.head,
        encoder_state=encoder_state(spec, job.store, trained=learner.judging.encoder),
        metrics={"epoch": chosen, "epochs": len(history.rows), "last": history.rows[chosen]},
    )
    record = save_bundle(job.store, bundle)
    return Trained(run, replace(bundle, digest=record.digest), history)


def _read_or_none(store: Store, name: str) -> Any:
    try:
        return store.read_json(name)
    except (FileNotFoundError, StorageError):
        return None


def _check_classes(prepared: Prepared, cohort: Cohort) -> None:
    """Refuse a train split without slides of two classes. Raises: TrainingError."""
    counts = Counter(entry.label for entry in prepared.entries if entry.split == "train")
    if len(counts) < 2:
        found = ", ".join(f"{count} {cohort.classes[label or 0]}" for label, count in counts.items()) or "none"
        raise TrainingError(f"training needs usable train slides of at least two classes; there are: {found}")


def _claim_run(job: Job, prepared: Prepared, spec: EncoderSpec, cohort: Cohort) -> str:
    """Return the run's name, and note what it was started with.

    Raises:
        ConfigError: If an earlier run of that name had other settings or other data.
    """
    config = job.config
    settings = {
        **{f"{name}.{key}": value for name in ("labels", "bags", "model", "losses")
           for key, value in getattr(config, name).model_dump().items()},
        **{f"training.{key}": value for key, value in config.training.identity().items()},
        "encoder.trainable": config.encoder.trainable,
        "encoder": spec.identity(),
        "tiling": config.tiling.identity(),
        "cohort.classes": list(cohort.classes),
    }  # fmt: skip
    data = {
        "cohort": cohort.fingerprint,
        "slides": {entry.slide_id: [part.sha256 for part in entry.parts] for entry in prepared.entries},
        "labels": {slide_id: record.digest for slide_id, record in prepared.labels.items()},
    }
    claim = {"settings": settings, "data": fingerprint(data)}
    run = config.training.run or f"train-{fingerprint(claim, length=10)}"
    earlier = _read_or_none(job.store, run_file(run, "run"))
    if earlier is not None and earlier != json.loads(json.dumps(claim)):
        changed = [
            f"{key}: {earlier['settings'].get(key)!r} then, {value!r} now"
            for key, value in settings.items()
            if earlier["settings"].get(key) != value
        ] or ["the slides, labels or outlines changed"]
        raise ConfigError(
            f"training.run = {run!r} was started with something else; choose another name, or delete "
            f"{job.store.path(checkpoint_folder(run))}\n  " + "\n  ".join(changed)
        )
    job.store.write_json(run_file(run, "run"), claim)
    return run


def _announce(job: Job, prepared: Prepared) -> Config:
    """Show what there is to learn from and which losses are active, and return the configuration to train with."""
    classes, form = len(job.config.cohort.classes), job.config.labels.form
    bags = [open_bag(job.store, entry, num_classes=classes, form=form) for entry in prepared.entries]
    columns = ("split", "slides", *KINDS, "pseudo label", "negative patches", "positive patches", "unknown patches")
    rows = [_supervision_row(split, [bag for bag in bags if bag.split == split]) for split in ("train", "val")]
    job.console.table("supervision", columns, rows)
    learning = [bag for bag in bags if bag.split == "train"]
    planner = StepPlanner(learning, job.config.bags, num_classes=classes, seed=job.config.training.seed)
    config, notes = active_config(job.config, planner)
    for note in notes:
        job.console.note(f"note: {note}")
    weights = {name: getattr(config.losses, name) for name in LOSSES}
    job.console.note("losses: " + ", ".join(f"{name} x {weight:g}" for name, weight in weights.items() if weight))
    return config


def _supervision_row(split: str, bags: list[Bag]) -> tuple[object, ...]:
    """Return a split's slides by kind of supervision and patches by label."""
    kinds = Counter(_supervision(bag.label or 0, bag.label_N) for bag in bags)
    negative, positive, unknown = (
        sum(int((np.sign(bag.label_N) == sign).sum()) for bag in bags) for sign in (0, 1, -1)
    )
    counts = [kinds[kind] for kind in KINDS]
    return (split, len(bags), *counts, sum(bag.is_pseudo for bag in bags), negative, positive, unknown)


def _supervision(label: int, label_N: NDArray[Any]) -> str:
    """Return which kind of supervision a slide brings."""
    if label == 0:
        return "negative"
    known = (label_N >= 0).mean()
    return "annotated" if known == 1 else "part annotated" if known > 0 else "label only"
