"""The main job: prepare the slides, train on a Ray Train worker group, bundle, predict and evaluate."""

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.callback import UserCallback

from distmil.bags import BagEntry, StepPlanner, open_bag
from distmil.checkpoints import Bundle, checkpoint_folder, load_checkpoint, save_bundle, save_checkpoint
from distmil.cohort import Cohort
from distmil.config import Config, build_config, fingerprint
from distmil.encoders import EncoderSpec, ResNetEncoder, canonical, load_encoder, prepare_encoder
from distmil.engine import (
    Group,
    History,
    Learner,
    active_config,
    evaluate,
    fit_normaliser,
    make_learner,
    train_epoch,
)
from distmil.errors import ConfigError, DistmilError, StorageError, TrainingError
from distmil.models.dual import DualNetwork
from distmil.stages.prepare import Prepared, prepare
from distmil.stages.runtime import Job, is_autoscaling, start_ray, wants_gpu
from distmil.storage import Store
from distmil.tracking import Tracker

logger = logging.getLogger(__name__)

POLL_S = 1.0
COLLECTIVE_TIMEOUT_S = 300


@dataclass(frozen=True)
class Trained:
    """What training made."""

    run: str
    bundle: Bundle
    history: History
    entries: list[BagEntry]


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
        run, artifacts=job.store.path("mlflow-artifacts"), resume=_read_or_none(job.store, _name(run, "mlflow"))
    )
    if tracker.run_id is not None:
        job.store.write_json(_name(run, "mlflow"), tracker.run_id)
    tracker.log_params(job.config, **{"data.fingerprint": cohort.fingerprint, "encoder.digest": spec.digest})
    config = _announce(job, prepared)
    job.store.write_json(_name(run, "cohort"), [entry.to_json() for entry in prepared.entries])
    history = _fit(job, config, run, spec, tracker)
    learner = _learner(config, spec, job.store, device=torch.device("cpu"))
    is_best = job.config.training.patience > 0
    load_checkpoint(job.store, run, learner, best=is_best)
    chosen = history.best_epoch if is_best else len(history.rows) - 1
    bundle = Bundle(
        run=run,
        config=job.config,
        head=learner.head,
        encoder_state=_encoder_state(learner, spec, job.store),
        metrics={"epoch": chosen, "epochs": len(history.rows), "last": history.rows[chosen]},
    )
    record = save_bundle(job.store, bundle)
    return Trained(run, _with_digest(bundle, record.digest), history, prepared.entries)


def _with_digest(bundle: Bundle, digest: str) -> Bundle:
    return Bundle(**{**vars(bundle), "digest": digest})


def _name(run: str, what: str) -> str:
    return f"{checkpoint_folder(run)}/{what}.json"


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
    earlier = _read_or_none(job.store, _name(run, "run"))
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
    job.store.write_json(_name(run, "run"), claim)
    return run


def _announce(job: Job, prepared: Prepared) -> Config:
    """Show what there is to learn from and which losses are active, and return the configuration to train with."""
    classes = len(job.config.cohort.classes)
    bags = [open_bag(job.store, entry, num_classes=classes, form=job.config.labels.form) for entry in prepared.entries]
    rows = []
    for split in ("train", "val"):
        here = [bag for bag in bags if bag.split == split]
        kinds = Counter(_supervision(bag.label or 0, bag.label_N) for bag in here)
        patches = Counter[str]()
        for bag in here:
            patches["negative"] += int((bag.label_N == 0).sum())
            patches["positive"] += int((bag.label_N > 0).sum())
            patches["unknown"] += int((bag.label_N < 0).sum())
        pseudo = sum(bag.is_pseudo for bag in here)
        rows.append(
            (split, len(here), *(kinds[kind] for kind in KINDS), pseudo,
             patches["negative"], patches["positive"], patches["unknown"])
        )  # fmt: skip
    columns = ("split", "slides", *KINDS, "pseudo label", "negative patches", "positive patches", "unknown patches")
    job.console.table("supervision", columns, rows)
    planner = StepPlanner(
        [bag for bag in bags if bag.split == "train"],
        job.config.bags,
        num_classes=classes,
        seed=job.config.training.seed,
    )
    config, notes = active_config(job.config, planner)
    for note in notes:
        job.console.note(f"note: {note}")
    weights = config.losses.model_dump()
    job.console.note("losses: " + ", ".join(f"{name} x {weight:g}" for name, weight in weights.items() if weight))
    return config


KINDS = ("negative", "annotated", "part annotated", "label only")


def _supervision(label: int, label_N: Any) -> str:
    """Return which kind of supervision a slide brings."""
    if label == 0:
        return "negative"
    known = (label_N >= 0).mean()
    return "annotated" if known == 1 else "part annotated" if known > 0 else "label only"


# --- the worker group --------------------------------------------------------------------------------------------


def _fit(job: Job, config: Config, run: str, spec: EncoderSpec, tracker: Tracker) -> History:
    """Run the worker group to the end of training and return the history."""
    done = _read_history(job.store, run)
    if done is not None and _is_finished(done, config):
        job.console.note(f"run {run} is trained already ({len(done.rows)} epochs)")
        return done
    if done is not None:
        job.console.note(f"run {run} goes on after epoch {len(done.rows)} of {config.training.epochs}")
    start_ray()
    is_gpu = wants_gpu(config)
    resources = _resources(config, is_gpu=is_gpu)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.training.start_timeout_s)
    # Ray's own snapshot is not written atomically; the run's own committed checkpoints are what it goes on from.
    job.store.delete(f"ray-train/{run}/checkpoint_manager_snapshot.json")
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": config.model_dump(), "run": run, "root": job.store.root, "spec": vars(spec), "is_gpu": is_gpu,
        },
        torch_config=TorchConfig(backend="nccl" if is_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.training.num_workers, use_gpu=is_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=run,
            storage_path=job.store.path("ray-train"),
            failure_config=ray.train.FailureConfig(
                max_failures=config.training.max_failures, controller_failure_limit=3 if is_autoscaling() else 0
            ),
            callbacks=[MetricsCallback(tracker)],
        ),
    )  # fmt: skip
    job.console.note(
        f"training {run}: {config.training.num_workers} worker(s) on {'GPU' if is_gpu else 'CPU'}, "
        f"{config.training.epochs} epochs"
    )
    with _epochs_shown(job, run, config):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(f"the worker group failed: {_root_cause(error)}; the same command goes on") from error
    if result.return_value and result.return_value.get("error"):
        raise TrainingError(result.return_value["error"])
    history = _read_history(job.store, run)
    if history is None:
        raise TrainingError(f"run {run} left no checkpoint")
    return history


def _resources(config: Config, *, is_gpu: bool) -> dict[str, float]:
    """Return what one worker asks for.

    Raises:
        ConfigError: If a cluster that cannot grow does not have it.
    """
    workers, have = config.training.num_workers, ray.cluster_resources()
    cores = 1 if is_gpu or is_autoscaling() else max(1, int(have.get("CPU", 1)) // workers)
    wanted = {"CPU": float(cores)} | ({"GPU": 1.0} if is_gpu else {})
    if not is_autoscaling():
        for name, amount in wanted.items():
            if have.get(name, 0) < amount * workers:
                raise ConfigError(
                    f"training.num_workers = {workers}: needs {amount * workers:g} {name}, "
                    f"this machine or cluster has {have.get(name, 0):g}"
                    + ("; set training.use_gpu=auto or false" if name == "GPU" else "")
                )
    return wanted


def _train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker: every worker holds the same plan and takes its share of each step."""
    config, store, run = build_config(settings["config"]), Store(settings["root"]), settings["run"]
    try:
        return _run_epochs(config, store, run, EncoderSpec(**settings["spec"]), is_gpu=settings["is_gpu"])
    except DistmilError as error:  # the same on every worker, and on every retry
        return {"error": str(error)}


def _run_epochs(config: Config, store: Store, run: str, spec: EncoderSpec, *, is_gpu: bool) -> dict[str, Any]:
    group = Group.current()
    device = ray.train.torch.get_device() if is_gpu and torch.cuda.is_available() else torch.device("cpu")
    entries = [BagEntry.from_json(values) for values in store.read_json(_name(run, "cohort"))]
    classes = len(config.cohort.classes)
    bags = [open_bag(store, entry, num_classes=classes, form=config.labels.form) for entry in entries]
    learning = [bag for bag in bags if bag.split == "train"]
    judging = [bag for bag in bags if bag.split == "val"]
    planner = StepPlanner(learning, config.bags, num_classes=classes, seed=config.training.seed)
    learner = _learner(config, spec, store, device=device)
    history = load_checkpoint(store, run, learner)
    if history is None:
        history = History()
        fit_normaliser(learner, learning, seed=config.training.seed, batch_size=config.encoder.batch_size)
    while not _is_finished(history, config):
        started = time.monotonic()
        epoch = len(history.rows)
        losses = train_epoch(learner, learning, planner, config, epoch=epoch, group=group)
        row: dict[str, float | None] = {f"loss_{name}" if name != "loss" else name: v for name, v in losses.items()}
        row |= {f"val_{name}": value for name, value in evaluate(learner, judging, config, group=group).items()}
        is_best = history.add(row, select_by=config.training.select_by)
        if group.rank == 0:
            save_checkpoint(store, run, learner, history, is_best=is_best)
        ray.train.report({**row, "epoch": epoch, "epoch_s": time.monotonic() - started})
    return {"epochs": len(history.rows)}


def _learner(config: Config, spec: EncoderSpec, store: Store, *, device: torch.device) -> Learner:
    """Return a freshly initialised learner, the same on every worker."""
    torch.manual_seed(config.training.seed)
    head = DualNetwork(config.model, embedding_dim=spec.dimension, num_classes=len(config.cohort.classes))
    encoder = load_encoder(spec, store) if config.encoder.trainable else None
    assert encoder is None or isinstance(encoder, ResNetEncoder)
    return make_learner(config, head, encoder, device)


def _encoder_state(learner: Learner, spec: EncoderSpec, store: Store) -> dict[str, torch.Tensor] | None:
    """Return the encoder's weights for the bundle: the trained ones, or those that made the embeddings."""
    if learner.encoder is not None:
        assert isinstance(learner.encoder, ResNetEncoder)
        return canonical(learner.encoder.net.state_dict())
    if spec.weights_file is None:
        return None
    encoder = load_encoder(spec, store)
    assert isinstance(encoder, ResNetEncoder)
    return canonical(encoder.net.state_dict())


def _is_finished(history: History, config: Config) -> bool:
    return len(history.rows) >= config.training.epochs or history.is_stale(config.training.patience)


def _read_history(store: Store, run: str) -> History | None:
    record = store.read_record(f"{checkpoint_folder(run)}/latest.json")
    return History(**record.info["history"]) if record else None


class MetricsCallback(UserCallback):  # type: ignore[misc]  # Ray ships no types
    """Sends what workers report to MLflow, from the controller; a failure there never reaches the training."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Log rank 0's metrics, which are the group's."""
        row = dict(metrics[0])
        epoch = int(row.pop("epoch"))
        self._tracker.log_metrics(row, step=epoch)


# --- progress ----------------------------------------------------------------------------------------------------


@contextmanager
def _epochs_shown(job: Job, run: str, config: Config) -> Iterator[None]:
    """Show each epoch's metrics as its checkpoint appears."""
    stop = threading.Event()
    shown = len(_rows(job.store, run))

    def watch() -> None:
        nonlocal shown
        while True:
            is_last = stop.wait(POLL_S)
            rows = _rows(job.store, run)
            every = max(1, config.training.epochs // 10)
            for epoch in range(shown, len(rows)):
                if (epoch + 1) % every == 0 or epoch == 0 or (is_last and epoch == len(rows) - 1):
                    job.console.note(_epoch_line(epoch, config.training.epochs, rows[epoch]))
            shown = len(rows)
            if is_last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _rows(store: Store, run: str) -> Sequence[Mapping[str, float | None]]:
    try:
        history = _read_history(store, run)
    except StorageError:
        return []
    return history.rows if history else []


def _epoch_line(epoch: int, epochs: int, row: Mapping[str, float | None]) -> str:
    names = {
        "loss": "loss",
        "val_slide_auc": "slide AUC",
        "val_patch_auc_probability": "patch AUC",
        "val_patch_ap_probability": "patch AP",
    }
    found = [f"{label} {value:.4f}" for name, label in names.items() if (value := row.get(name)) is not None]
    return f"epoch {epoch + 1}/{epochs}: " + ", ".join(found)


def _root_cause(error: BaseException) -> str:
    """Return the last line of the deepest failure."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
