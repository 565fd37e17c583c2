"""Everything that knows Ray Tune: how it gets a search's trials, trains them, hands on their rows and ends them.

Tune runs trials on a cluster and starts their processes. The queue decides what is trained, and the records are kept
in the driver, so that a search goes on from them after any interruption.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distmil.config.root import Config
from distmil.errors import ConfigError, TrainingError
from distmil.pipeline.cluster import cluster_resources, is_autoscaling, start_ray, wants_gpu
from distmil.pipeline.tuning.plan import SearchPlan, clear_trial
from distmil.pipeline.tuning.trial_records import TrialRecords
from distmil.pipeline.tuning.trials import (
    WORKER_CORES,
    TrialTraining,
    failure_report,
    fit_workers,
    is_of_the_setting,
)
from distmil.processes.malloc import keep_freed_memory
from distmil.search.queue import TrialQueue
from distmil.search.trial import WORST, Trial, score_of

TRIAL = "trial"
"""Key of the trial in Tune's configuration of it."""


class QueueSearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """The queue behind Tune's interface; the trial records tell it how its trials end."""

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__(metric="score", mode="max")
        self._queue = queue

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy that nobody reads, and samplers cannot be pickled

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take no part in Tune's own spaces."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Hand out the next trial, None where it is too early to say."""
        trial = self._queue.next()
        if trial is not None:
            return {TRIAL: trial}
        return Searcher.FINISHED if self._queue.is_done else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Leave it to the trial records."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a search goes on from the records."""

    def restore(self, checkpoint_path: str) -> None:
        """Take nothing up."""


class RecordsCallback(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Hands Tune's events to the trial records."""

    def __init__(self, records: TrialRecords) -> None:
        self._records = records

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of its callbacks that nobody reads

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hand on a start."""
        self._records.start(trial.config[TRIAL])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Hand on a report."""
        self._records.take(trial.config[TRIAL].key, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hand on the end of a trial that trained to its last epoch or was ended early."""
        self._records.complete(trial.config[TRIAL].key, is_last=bool(trial.last_result.get("is_last")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hand on the end of a trial whose process raised or is gone."""
        self._records.fail(trial.config[TRIAL])


class SuccessiveHalving(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Ends trials early that are behind: asynchronous successive halving.

    A trial that reaches a milestone (grace_epochs x reduction^k epochs) ends there unless its score is at least the
    quantile 1 - 1/reduction of the scores that earlier trials had at that milestone.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020 (ASHA), with Ray's departures:
    a trial that was let through is not ended later by others, and a report counts for the highest milestone reached.
    """

    def __init__(self, *, epochs: int, grace_epochs: int, reduction: float) -> None:
        super().__init__()
        count = int(np.log(epochs / grace_epochs) / np.log(reduction) + 1)
        self._share = 1 - 1 / reduction
        self._scores: dict[float, dict[str, float]] = {grace_epochs * reduction**k: {} for k in reversed(range(count))}
        """By milestone, the highest first, and by trial."""

    def decide(self, trial: str, epoch: int, score: float) -> bool:
        """Take in a trial's score after an epoch, and return whether the trial goes on."""
        scores = next((scores for milestone, scores in self._scores.items() if epoch >= milestone), None)
        if scores is None or trial in scores:
            return True
        is_behind = bool(scores) and score < np.nanpercentile(list(scores.values()), self._share * 100)
        scores[trial] = score
        return not is_behind

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on; a trial that failed is not a measure for others."""
        goes_on = result["error"] is not None or self.decide(trial.trial_id, result["epoch"], result["score"])
        return str(TrialScheduler.CONTINUE if goes_on or result["is_last"] else TrialScheduler.STOP)


def make_scheduler(config: Config, over: Sequence[Trial], *, metric: str) -> Any:
    """Make the scheduler that decides which trials end early; trials of an earlier call count."""
    search, epochs = config.search, config.training.epochs
    if search.stopping == "none" or epochs <= search.grace_epochs:
        return FIFOScheduler()
    found = SuccessiveHalving(epochs=epochs, grace_epochs=search.grace_epochs, reduction=search.reduction)
    for record in over:
        for epoch, row in enumerate(record.rows, start=1):
            score = score_of(row, metric)
            found.decide(record.key, epoch, WORST if score is None else score)
    return found


class TrialProcess(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Trains one trial after another in its own process."""

    def setup(self, config: dict[str, Any], plan: SearchPlan) -> None:
        """Open the first trial."""
        torch.set_num_threads(1)
        if not plan.is_gpu:
            keep_freed_memory()
        self._plan = plan
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        """Train an epoch."""
        found = self._training.step()
        is_settled = found["error"] is not None and self._training.failure is None
        return found | {tune.result.DONE: found["is_last"] or is_settled}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process."""
        self._training = TrialTraining(self._plan, new_config[TRIAL])
        return True


class _WorkersCallback(TuneReportCallback):  # type: ignore[misc]  # Ray ships no types
    """Hands epochs of workers to Tune as its trial's."""

    def __init__(self, make_report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self._make_report = make_report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Hand on an epoch."""
        super().after_report(run_context, [self._make_report(metrics[0])], checkpoint)


def train_workers(config: dict[str, Any], plan: SearchPlan) -> None:
    """Train a trial of several workers."""
    try:
        fit_workers(plan, config[TRIAL], tell=tune.report, make_callback=_WorkersCallback)
    except Exception as error:
        tune.report(failure_report(error, 0))
        if not is_of_the_setting(error):
            raise


def run_trials(plan: SearchPlan, records: TrialRecords, *, stops_early: bool) -> None:
    """Train every trial of the records' queue.

    The queue tries lost trials again: Tune gives up a trial whose process dies while it is handed over.

    Raises:
        ConfigError: If the resources that trials need are not there.
        TrainingError: If Tune ended before the queue did, or another job took the search over.
    """
    records.open()
    queue = records.queue
    if queue.is_done:
        return
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the trial records are enough
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 nothing; the new one has tables on stdout
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the job, not Tune alone as if all was done
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scheduler = make_scheduler(plan.config, queue.over, metric=plan.metric) if stops_early else FIFOScheduler()
    try:
        _tuner(plan, records, scheduler).fit()
    finally:
        plan.check_lease()  # Tune wraps the errors of its callbacks
    if records.running:
        raise TrainingError(
            f"the search was ended with {len(records.running)} trials running; the same command goes on"
        )
    for record in records.trials.values() if plan.has_workers else []:
        if record.is_over:  # workers that were ended early take a moment to stop, and may have written since
            clear_trial(plan, record)


def _tuner(plan: SearchPlan, records: TrialRecords, scheduler: Any) -> tune.Tuner:
    resources = trial_resources(plan.config, is_gpu=plan.is_gpu)
    trainable = tune.with_parameters(train_workers if plan.has_workers else TrialProcess, plan=plan)
    starts = records.queue.total * (plan.config.search.max_failures + 1)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=starts, search_alg=QueueSearcher(records.queue),
            scheduler=scheduler, max_concurrent_trials=concurrency(plan.config, resources),
            reuse_actors=not plan.has_workers, trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=plan.run,
            **plan.store.for_ray("ray-tune"),
            callbacks=[RecordsCallback(records)],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )  # fmt: skip


def trial_resources(config: Config, *, is_gpu: bool) -> dict[str, float]:
    """List the resources of a trial: a core and its share of a GPU; one byte where its workers claim their own.

    Tune refuses to run a trial without resources.
    """
    if config.training.num_workers > 1:
        return {"memory": 1}
    return {"CPU": 1} | ({"GPU": config.search.gpus_per_trial} if is_gpu else {})


def concurrency(config: Config, resources: Mapping[str, float]) -> int:
    """Count the trials that run at once: as many as the cluster, grown to its limit, has room for.

    Raises:
        ConfigError: If there is no room for one, and no node can come.
    """
    start_ray()
    have = cluster_resources()
    workers = config.training.num_workers
    is_gpu = wants_gpu(config)
    needs = dict(resources)
    if workers > 1:
        needs = {"CPU": float(WORKER_CORES * workers)} | ({"GPU": float(workers)} if is_gpu else {})
    room = min(int(have.get(name, 0) / amount + 1e-9) for name, amount in needs.items())
    if room < 1 and not is_autoscaling():
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
        there = ", ".join(f"{have.get(name, 0):g} {name}" for name in needs)
        raise ConfigError(f"a trial needs {wanted}; this machine or cluster has {there}")
    return max(1, min(room, config.search.concurrent or room))
