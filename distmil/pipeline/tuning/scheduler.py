"""The driver's side of a search: Tune, what it is asked to train, and what it ends early."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distmil.config.root import Config
from distmil.errors import ConfigError, TrainingError
from distmil.pipeline.cluster import cluster_resources, is_autoscaling, start_ray, wants_gpu
from distmil.pipeline.tuning.callback import TrialBook
from distmil.pipeline.tuning.trials import TASK, WORKER_CORES, Sweep, TrialProcess, clear_trial, train_group
from distmil.search.queue import Agenda
from distmil.search.space import WORST, TrialRecord, score_of

logger = logging.getLogger(__name__)


class AgendaSearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """The agenda behind Tune's interface; the trial book tells it what becomes of its tasks."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__(metric="score", mode="max")
        self._agenda = agenda

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy that nobody reads, and draws cannot be pickled

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take no part in Tune's own spaces."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return what is trained next, None where it is too early to say."""
        task = self._agenda.next()
        if task is not None:
            return {TASK: task}
        return Searcher.FINISHED if self._agenda.is_done else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Leave it to the trial book."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: records are what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Take nothing up."""


class Rungs(ASHAScheduler):  # type: ignore[misc]  # Ray ships no types
    """ASHA that knows what trials of an earlier call came to, and leaves alone what has come to its end."""

    def __init__(self, config: Config, over: Sequence[TrialRecord], *, metric: str) -> None:
        search = config.search
        super().__init__(
            time_attr="epoch", max_t=config.training.epochs, grace_period=search.grace_epochs,
            reduction_factor=search.reduction, stop_last_trials=False,
        )  # fmt: skip
        for record in over:
            for epoch, row in enumerate(record.rows, start=1):
                score = score_of(row, metric)
                known = SimpleNamespace(trial_id=record.task.key)
                self._brackets[0].on_result(known, epoch, WORST if score is None else score)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether a trial goes on; one that failed is no measure for others."""
        if result["error"] is not None:
            return str(TrialScheduler.CONTINUE)
        action = super().on_trial_result(tune_controller, trial, result)
        return str(TrialScheduler.CONTINUE if result["is_last"] else action)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Forget a trial; its results were taken in as they came."""
        self._trial_info.pop(trial.trial_id, None)


def make_scheduler(config: Config, over: Sequence[TrialRecord], *, metric: str) -> Any:
    """Return who decides which trials end early."""
    search = config.search
    if search.stopping == "none" or config.training.epochs <= search.grace_epochs:
        return FIFOScheduler()
    return Rungs(config, over, metric=metric)


def run_agenda(sweep: Sweep, config: Config, book: TrialBook, *, stops_early: bool) -> None:
    """Train everything on the book's agenda.

    Lost trials are tried again by the agenda: Tune gives one up whose process dies while it is handed over.

    Raises:
        ConfigError: If what trials need is not there.
        TrainingError: If Tune ended before the agenda, or another job took the search over.
    """
    book.open()
    if book.agenda.is_done:
        return
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the book keeps the records
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 nothing; the new one has tables on stdout
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the job, not Tune alone as if all was done
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scheduler = make_scheduler(config, book.agenda.over, metric=sweep.metric) if stops_early else FIFOScheduler()
    try:
        _tuner(sweep, config, book, scheduler).fit()
    finally:
        sweep.check_lease()  # Tune wraps what the book raises
    if book.running:
        raise TrainingError(f"the search was ended with {len(book.running)} trials running; the same command goes on")
    for record in book.records.values() if sweep.is_grouped else []:
        if record.is_over:  # a group that was ended early takes a moment to stop, and may have written since
            clear_trial(sweep, record.task)


def _tuner(sweep: Sweep, config: Config, book: TrialBook, scheduler: Any) -> tune.Tuner:
    resources = trial_resources(config, is_gpu=sweep.is_gpu)
    trainable = tune.with_parameters(train_group if sweep.is_grouped else TrialProcess, sweep=sweep)
    starts = book.agenda.total * (config.search.max_failures + 1)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=starts, search_alg=AgendaSearcher(book.agenda),
            scheduler=scheduler, max_concurrent_trials=concurrency(config, resources),
            reuse_actors=not sweep.is_grouped, trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=sweep.run,
            **sweep.store.for_ray("ray-tune"),
            callbacks=[book],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )  # fmt: skip


def trial_resources(config: Config, *, is_gpu: bool) -> dict[str, float]:
    """Return what a trial asks for: a core and its share of a GPU; where its workers ask for themselves, a byte.

    Tune refuses to run what asks for nothing.
    """
    if config.training.num_workers > 1:
        return {"memory": 1}
    return {"CPU": 1} | ({"GPU": config.search.gpus_per_trial} if is_gpu else {})


def concurrency(config: Config, resources: Mapping[str, float]) -> int:
    """Return how many trials run at once: as many as the cluster, grown to its limit, has room for.

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


def check_any_finished(records: Sequence[TrialRecord]) -> None:
    """Refuse to go on where every trial failed. Raises: TrainingError."""
    if records and all(record.status == "failed" for record in records):
        raise TrainingError(f"every trial failed; the first: {records[0].error}")
