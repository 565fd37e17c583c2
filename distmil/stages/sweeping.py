"""The driver's side of a search: Tune, what it draws from and ends early, and the records of trials."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator

from distmil.config import Config
from distmil.errors import ConfigError, TrainingError
from distmil.search import WORST, Domain, Task, TrialRecord, Values
from distmil.stages.runtime import cluster_resources, is_autoscaling, start_ray, wants_gpu
from distmil.stages.trials import (
    TASK,
    WORKER_CORES,
    Sweep,
    TrialProcess,
    clear_trial,
    read_trial,
    search_folder,
    train_group,
)

logger = logging.getLogger(__name__)


@dataclass
class TrialBook(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Keeps a record of every trial, in the driver: what is written here is what a restarted search goes on from."""

    sweep: Sweep
    is_asked: bool
    """Note what is started, for an algorithm that learns from it."""
    on_start: Callable[[TrialRecord], None]
    on_row: Callable[[TrialRecord], None]
    on_end: Callable[..., None]
    """Takes the record, and whether the trial was over before this search began."""
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """By Tune's trial id."""
    _started: dict[str, float] = field(default_factory=dict)
    _over: dict[str, TrialRecord] = field(default_factory=dict)
    """What was known of trials that were over before."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of its callbacks that nobody reads

    @property
    def lost(self) -> list[TrialRecord]:
        """Return the trials that did not come to an end of their own."""
        return [record for record in self.records.values() if record.was_lost or record.status == "running"]

    def restart(self) -> None:
        """Begin the records again; what is over is told again."""
        for kept in (self.records, self._started, self._over):
            kept.clear()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open a record, or go on with an earlier one."""
        if trial.trial_id in self.records:
            self.records[trial.trial_id].rows.clear()  # it was lost, and tells its rows again
            return
        task = self.sweep.task(trial.config)
        known = read_trial(self.sweep, task)
        record = TrialRecord(dict(task.values), task.seed, task.is_repeat, number=len(self.records), claim=task.claim)
        self.records[trial.trial_id] = record
        self._started[trial.trial_id] = time.monotonic()
        if known is not None:
            record.mlflow = known.mlflow
            if known.is_over:
                self._over[trial.trial_id] = known
                return
        if self.is_asked and not task.is_repeat:
            note_asked(self.sweep, task.values)
        self.on_start(record)
        self._write(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in a row."""
        record = self.records[trial.trial_id]
        if result["error"] is not None:
            record.error = result["error"]
            return
        del record.rows[result["epoch"] - 1 :]
        record.rows.append(result["row"])
        record.score = None if result["score"] == WORST else result["score"]
        if trial.trial_id not in self._over:
            self.on_row(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close a trial that went to its end, or was ended early."""
        record, known = self.records[trial.trial_id], self._over.get(trial.trial_id)
        if known is not None:  # told again in another order, a rung may end what went to its end before
            record = self.records[trial.trial_id] = replace(known, number=record.number)
        elif record.error is not None:
            record.status = "failed"
        else:
            record.status = "finished" if trial.last_result.get("is_last") else "stopped"
        self._close(trial, record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close a trial that was lost too often, or whose process was gone before it began."""
        task = self.sweep.task(trial.config)
        record = self.records.setdefault(
            trial.trial_id,
            TrialRecord(dict(task.values), task.seed, task.is_repeat, number=len(self.records), claim=task.claim),
        )
        lines = str(trial.get_error() or "").strip().splitlines()
        record.status, record.error = "failed", lines[-1] if lines else "its process or node was lost"
        record.was_lost = True
        self._close(trial, record)

    def _close(self, trial: Any, record: TrialRecord) -> None:
        was_over = trial.trial_id in self._over
        if not was_over:
            record.seconds = time.monotonic() - self._started.get(trial.trial_id, time.monotonic())
            self._write(record)
        self.on_end(record, was_over=was_over)
        if record.is_over:
            clear_trial(self.sweep, record.task)

    def _write(self, record: TrialRecord) -> None:
        self.sweep.store.write_json(self.sweep.record_file(record.task), record.to_json())


def search_trials(sweep: Sweep, config: Config, space: Mapping[str, Domain], default: Values, book: TrialBook) -> None:
    """Run the search's trials, the default values first where they are in the space.

    Raises:
        ConfigError: If what trials need is not there, or Optuna is not installed.
    """
    search = config.search
    is_grid = search.algorithm == "grid"
    space_of = {key: tune.grid_search(list(d.values)) if is_grid else _domain(d) for key, d in space.items()}
    first = [dict(default)] if all(default[key] in domain for key, domain in space.items()) else []

    def draw() -> Any:
        if search.algorithm == "optuna":
            return _optuna(_asked(sweep) or first, seed=config.training.seed)
        points = None if is_grid else first or None
        return BasicVariantGenerator(points_to_evaluate=points, random_state=config.training.seed)

    _run(
        sweep,
        config,
        space_of,
        book,
        samples=1 if is_grid else search.trials,
        draw=draw,
        schedule=partial(_asha, config),
    )


def run_tasks(sweep: Sweep, config: Config, tasks: Sequence[Task], book: TrialBook) -> None:
    """Train some settings to the end. Raises: ConfigError if what they need is not there."""
    space = {TASK: tune.grid_search(list(tasks))}
    _run(sweep, config, space, book, samples=1, draw=BasicVariantGenerator, schedule=FIFOScheduler)


def _asha(config: Config) -> Any:
    """Return who decides which trials end early."""
    search = config.search
    if search.stopping == "none" or config.training.epochs <= search.grace_epochs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        max_t=config.training.epochs,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction,
        stop_last_trials=False,
    )


def _run(
    sweep: Sweep,
    config: Config,
    space: dict[str, Any],
    book: TrialBook,
    *,
    samples: int,
    draw: Callable[[], Any],
    schedule: Callable[[], Any],
) -> None:
    """Run trials, and those that were lost once more, until none is or ``search.max_failures`` is reached.

    Tune starts lost trials again by itself, but gives one up whose process dies while it is handed over.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the book keeps the records
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 nothing; the new one has tables on stdout
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the job, not this call as if all was done
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    for _ in range(config.search.max_failures + 1):
        book.restart()
        _run_once(sweep, config, space, book, samples=samples, algorithm=draw(), scheduler=schedule())
        if not book.lost:
            return
        logger.warning("%d of %d trials were lost; they are tried again", len(book.lost), len(book.records))


def _run_once(
    sweep: Sweep,
    config: Config,
    space: dict[str, Any],
    book: TrialBook,
    *,
    samples: int,
    algorithm: Any,
    scheduler: Any,
) -> None:
    resources = trial_resources(config, is_gpu=sweep.is_gpu)
    single = config.training.num_workers == 1
    trainable = tune.with_parameters(TrialProcess if single else train_group, sweep=sweep)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=samples, search_alg=algorithm, scheduler=scheduler,
            max_concurrent_trials=concurrency(config, resources), reuse_actors=single,
        ),
        run_config=tune.RunConfig(
            name=sweep.run,
            **sweep.store.for_ray("ray-tune"),
            callbacks=[book],
            failure_config=tune.FailureConfig(max_failures=config.search.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )  # fmt: skip
    tuner.fit()


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


def _domain(domain: Domain) -> Any:
    """Return a domain in Tune's words."""
    if domain.kind == "choice":
        return tune.choice(list(domain.values))
    low, high = domain.values
    make = {"uniform": tune.uniform, "loguniform": tune.loguniform, "int": _integers}[domain.kind]
    return make(low, high)


def _integers(low: int, high: int) -> Any:
    return tune.randint(low, high + 1)


def _asked(sweep: Sweep) -> list[dict[str, Any]]:
    """Return what Optuna asked for in an earlier call: it asks for that again, and is told at once what is over."""
    try:
        return list(sweep.store.read_json(asked_file(sweep)))
    except FileNotFoundError:
        return []


def note_asked(sweep: Sweep, values: Values) -> None:
    """Note what Optuna asked for."""
    asked = _asked(sweep)
    if dict(values) not in asked:
        sweep.store.write_json(asked_file(sweep), [*asked, dict(values)])


def asked_file(sweep: Sweep) -> str:
    """Return the name of the file with what Optuna asked for."""
    return f"{search_folder(sweep.run)}/asked.json"


def _optuna(points: Sequence[Values], *, seed: int) -> Any:
    """Return Optuna's sampler behind Tune's interface. Raises: ConfigError if it is not installed."""
    try:
        import optuna  # noqa: PLC0415  # an extra
        from ray.tune.search.optuna import OptunaSearch  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("search.algorithm = 'optuna': install the extra, pip install 'distmil[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(points_to_evaluate=[dict(values) for values in points] or None, seed=seed)


def check_any_finished(records: Sequence[TrialRecord]) -> None:
    """Refuse to go on where every trial failed. Raises: TrainingError."""
    if records and all(record.status == "failed" for record in records):
        raise TrainingError(f"every trial failed; the first: {records[0].error}")
