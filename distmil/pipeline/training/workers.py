"""The workers: from a run's committed state to the end of its training."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.train
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.errors import ConfigError, TrainingError
from distmil.pipeline.cluster import is_autoscaling, node_resources, start_ray, wants_gpu
from distmil.pipeline.job import Job
from distmil.pipeline.training.attempts import run_attempts
from distmil.pipeline.training.monitor import MetricsCallback, watched
from distmil.pipeline.training.worker import read_history, train_worker
from distmil.storage.store import Store
from distmil.tracking.tracker import Tracker
from distmil.training.engine import History
from distmil.training.ownership import Lease, take_over
from distmil.training.run import is_finished
from distmil.training.run_files import checkpoint_folder

REPORT_INTERVAL_S = 0.2
COLLECTIVE_TIMEOUT_S = 300
RESIZE_INTERVAL_S = 60.0
# Elastic workers start only where nodes are ready, but what Ray knows of them may be 20 s old. A wait for a node that
# is gone is given up soon, and says nothing about what is wrong; until nodes are ready workers wait without limit.
ELASTIC_START_TIMEOUT_S = 15
ELASTIC_STARTS = 100
CLUSTER_STARTS = 3


def check_workers(job: Job) -> None:
    """Check before anything is made that the workers have what they need, unless their run is finished.

    Raises:
        ConfigError: If a cluster that cannot grow does not have it.
    """
    run = job.config.training.run
    done = read_history(job.store, run) if run else None
    if done is None or not is_finished(done, job.config):
        check_resources(job.config)


def check_resources(config: Config) -> None:
    """Check that the workers have what they need. Raises: ConfigError."""
    training = config.training
    if training.use_gpu is True or training.num_workers > 1:
        start_ray()
        _resources(config, is_gpu=wants_gpu(config, count=training.min_workers or training.num_workers))


def fit(job: Job, config: Config, run: str, spec: EncoderSpec, tracker: Tracker) -> History:
    """Run the workers to the end of training and return the history.

    Raises:
        ConfigError: If what workers need is not there.
        TrainingError: If the loss is not finite, the workers failed more often than they may, or another job took the
            run over.
        StorageError: If the store cannot be written or read.
    """
    done = read_history(job.store, run)
    if done is not None and is_finished(done, config):
        job.console.note(f"run {run} is trained already ({len(done.rows)} epochs)")
        return done
    if done is not None:
        job.console.note(f"run {run} goes on after epoch {len(done.rows)} of {config.training.epochs}")
    lease = take_over(job.store, checkpoint_folder(run), run=run)
    start_ray()
    job.console.note(f"training {run}: {workers_in_words(config)}, {config.training.epochs} epochs")

    def attempt() -> ray.train.Result:
        trainer = make_trainer(job.store, config, run, spec, [MetricsCallback(tracker)], lease=lease)
        with watched(job, run, config, trainer.scaling_config.resources_per_worker):
            return trainer.fit()

    run_attempts(attempt, starts=starts_of(config), note=job.console.note)
    history = read_history(job.store, run)
    return check_finished(history, config, run)


def workers_in_words(config: Config) -> str:
    """Word how many workers there are, and on what they work."""
    fewest, most = config.training.min_workers, config.training.num_workers
    count = f"{most}" if fewest is None else f"{fewest} to {most}"
    return f"{count} worker(s) on {'GPU' if wants_gpu(config) else 'CPU'}"


def check_finished(history: History | None, config: Config, run: str) -> History:
    """Check that a run's history is finished, and return it.

    Raises:
        TrainingError: If epochs are missing.
    """
    if history is None or not is_finished(history, config):
        epochs = len(history.rows) if history else 0
        raise TrainingError(
            f"run {run} ended after {epochs} of {config.training.epochs} epochs, and nothing is made of it; the same "
            "command goes on. Does another job train a run of this name, or did something delete its files?"
        )
    return history


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    """A trainer that leaves Ctrl-C to the job: Ray's own handler ends the process without a word."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Take no signal."""


def make_trainer(
    store: Store,
    config: Config,
    run: str,
    spec: EncoderSpec,
    callbacks: Sequence[UserCallback],
    *,
    lease: Lease,
    cores: int | None = None,
) -> TorchTrainer:
    """Make the workers of a run whose ``cohort`` file is written.

    Args:
        store: Where the run is.
        config: The configuration to train with.
        run: The run's name.
        spec: The encoder.
        callbacks: Take the reports of the workers.
        lease: The job's right to write the run's checkpoints.
        cores: CPU cores of each worker, for workers that share a cluster; None: as many as the nodes have for it.

    Raises:
        ConfigError: If what workers need is not there.
    """
    settings = {"spec": vars(spec), "lease": vars(lease)}
    return make_workers(train_worker, settings, store=store, config=config, run=run, callbacks=callbacks, cores=cores)


def make_workers(
    work: Callable[[dict[str, Any]], dict[str, Any]],
    settings: Mapping[str, Any],
    *,
    store: Store,
    config: Config,
    run: str,
    callbacks: Sequence[UserCallback],
    cores: int | None = None,
) -> TorchTrainer:
    """Make workers as ``training`` sets it up.

    Args:
        work: What each worker does. It gets the settings, with ``config``, ``run``, ``root``, ``is_gpu`` and
            ``threads``; an ``error`` in its answer is one of all workers.
        settings: More settings, that can be pickled.
        store: Where the run is.
        config: The configuration.
        run: The run's name.
        callbacks: Take the reports of the workers.
        cores: CPU cores of each worker; see ``make_trainer``.

    Raises:
        ConfigError: If what workers need is not there.
    """
    fewest, most = config.training.min_workers, config.training.num_workers
    is_gpu = wants_gpu(config, count=fewest or most)
    resources = _resources(config, is_gpu=is_gpu, cores=cores)
    _set_environment(config)
    # Ray's own snapshot is not written atomically; the run's own committed checkpoints are what it goes on from.
    store.delete(f"ray-train/{run}/checkpoint_manager_snapshot.json")
    return _Trainer(
        work,
        train_loop_config={
            **settings, "config": config.model_dump(), "run": run, "root": store.root, "is_gpu": is_gpu,
            "threads": int(resources["CPU"]),
        },
        torch_config=TorchConfig(backend="nccl" if is_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if fewest is None else (fewest, most), use_gpu=is_gpu, resources_per_worker=resources,
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        ),
        run_config=ray.train.RunConfig(
            name=run,
            **store.for_ray("ray-train"),
            failure_config=_failure_config(config),
            callbacks=list(callbacks),
        ),
    )  # fmt: skip


def _failure_config(config: Config) -> ray.train.FailureConfig:
    """Set how often training starts again.

    Nodes that are taken away by announcement do not count. What Ray calls failures of the controller are failures
    while workers start, as when a worker dies before its first step: they count apart, by the same limit.
    """
    return ray.train.FailureConfig(
        max_failures=config.training.max_failures,
        max_preemption_failures=-1,
        controller_failure_limit=starts_of(config),
    )


def starts_of(config: Config) -> int:
    """Count the starts that workers may fail in."""
    if config.training.min_workers is not None:
        return ELASTIC_STARTS
    limit = config.training.max_failures
    return max(limit, CLUSTER_STARTS) if _is_cluster() else limit


def _is_cluster() -> bool:
    """Return whether nodes may come and go."""
    return is_autoscaling() or len(ray.nodes()) > 1


def _set_environment(config: Config) -> None:
    """Set the options that Ray Train reads from the environment only."""
    timeout_s = config.training.start_timeout_s
    if config.training.min_workers is not None:
        timeout_s = min(timeout_s, ELASTIC_START_TIMEOUT_S)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeout_s)
    # Workers wait in report() for the controller to look; its default of 2 s would be most of a short epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(REPORT_INTERVAL_S))
    if not _is_cluster():  # nothing is taken away by announcement
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def _resources(config: Config, *, is_gpu: bool, cores: int | None = None) -> dict[str, float]:
    """List the resources of one worker.

    Raises:
        ConfigError: If a cluster that cannot grow does not have it.
    """
    most = config.training.num_workers
    needed = config.training.min_workers or most
    nodes = node_resources()
    there = [int(node.get("CPU", 0)) for node in nodes]
    each = cores or (1 if is_gpu or is_autoscaling() else _cores_each(there, most))
    wanted = {"CPU": float(each)} | ({"GPU": 1.0} if is_gpu else {})
    if not is_autoscaling():
        for name, amount in wanted.items():
            have = sum(node.get(name, 0) for node in nodes)
            if have < amount * needed:
                raise ConfigError(
                    f"training.{'num' if needed == most else 'min'}_workers = {needed}: needs {amount * needed:g} "
                    f"{name}, this machine or cluster has {have:g}"
                    + ("; set training.use_gpu=auto or false" if name == "GPU" else "")
                )
    return wanted


def _cores_each(cores: Sequence[int], workers: int) -> int:
    """Count the most cores that each worker can have on nodes with given cores, at least one."""
    return next((each for each in range(max(cores), 1, -1) if sum(n // each for n in cores) >= workers), 1)
