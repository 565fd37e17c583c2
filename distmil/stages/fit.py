"""The worker group: from a run's committed state to the end of its training."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from distmil.config import Config
from distmil.encoders import EncoderSpec
from distmil.engine import History
from distmil.errors import ConfigError, StorageError, TrainingError
from distmil.stages.callback import MetricsCallback
from distmil.stages.runtime import Job, is_autoscaling, start_ray, wants_gpu
from distmil.stages.worker import is_finished, read_history, train_worker
from distmil.storage import Store
from distmil.tracking import Tracker

POLL_S = 1.0
REPORT_INTERVAL_S = 0.2
COLLECTIVE_TIMEOUT_S = 300


def fit(job: Job, config: Config, run: str, spec: EncoderSpec, tracker: Tracker) -> History:
    """Run the worker group to the end of training and return the history."""
    done = read_history(job.store, run)
    if done is not None and is_finished(done, config):
        job.console.note(f"run {run} is trained already ({len(done.rows)} epochs)")
        return done
    if done is not None:
        job.console.note(f"run {run} goes on after epoch {len(done.rows)} of {config.training.epochs}")
    start_ray()
    is_gpu = wants_gpu(config)
    resources = _resources(config, is_gpu=is_gpu)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.training.start_timeout_s)
    # Workers wait in report() for the controller to look; its default of 2 s would be most of a short epoch.
    if not is_autoscaling():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(REPORT_INTERVAL_S))
    # Ray's own snapshot is not written atomically; the run's own committed checkpoints are what it goes on from.
    job.store.delete(f"ray-train/{run}/checkpoint_manager_snapshot.json")
    trainer = TorchTrainer(
        train_worker,
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
    history = read_history(job.store, run)
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
        history = read_history(store, run)
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
