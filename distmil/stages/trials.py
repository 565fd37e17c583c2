"""Trials under Ray Tune: in the trial's own process where one worker is enough, else a worker group of its own."""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator

from distmil.bags import Bag
from distmil.config import Config
from distmil.configfile import build_config
from distmil.encoders import EncoderSpec
from distmil.errors import ConfigError, DistmilError, TrainingError
from distmil.memory import keep_freed_memory
from distmil.search import WORST, Domain, Task, TrialRecord, Values, score_of, with_values
from distmil.stages.fit import make_trainer
from distmil.stages.runtime import cluster_resources, is_autoscaling, start_ray, wants_gpu
from distmil.stages.worker import choose_device, open_bags, read_history, run_file
from distmil.storage import Store
from distmil.trial import Fold, Row, Trial

logger = logging.getLogger(__name__)

CHECKPOINT_S = 30.0
"""Seconds of work that a lost trial may lose."""
TASK = "task"
HELD_OUT = "held_out_"


@dataclass(frozen=True)
class Sweep:
    """What all trials of a search share. Travels to their processes."""

    run: str
    root: str
    values: dict[str, Any]
    """The configuration."""
    spec: EncoderSpec
    metric: str
    is_gpu: bool
    folds: Sequence[tuple[Sequence[str], Sequence[str]]]
    """Slides to train on and to judge on."""
    held_out: Sequence[str]
    """Slides that no trial of the search sees."""
    seed: int

    @property
    def store(self) -> Store:
        """Return the store."""
        return Store(self.root)

    def config(self, task: Task) -> Config:
        """Return a trial's configuration. Raises: ConfigError."""
        return with_values(build_config(self.values), {**task.values, "training.seed": task.seed})

    def task(self, config: Mapping[str, Any]) -> Task:
        """Return what Tune wants to be trained: searched values, or a task as it is."""
        return config[TASK] if TASK in config else Task(dict(config), self.seed)

    def record_file(self, task: Task) -> str:
        """Return the name of a trial's record."""
        return f"{search_folder(self.run)}/trials/{task.key}.json"

    def checkpoint(self, task: Task) -> str:
        """Return the name under which a trial's checkpoints are."""
        return f"{self.run}/{task.key}"


def search_folder(run: str) -> str:
    """Return the folder of a search."""
    return f"searches/{run}"


def read_trial(sweep: Sweep, task: Task) -> TrialRecord | None:
    """Return what is known of a trial, None if it was never started."""
    try:
        return TrialRecord(**sweep.store.read_json(sweep.record_file(task)))
    except FileNotFoundError:
        return None


@functools.cache
def _bags(root: str, run: str, form: str, classes: int) -> dict[str, Bag]:
    """Return the search's bags by slide; they are opened once in a process, whatever it trains."""
    config = build_config({"labels": {"form": form}, "cohort": {"classes": [f"class {i}" for i in range(classes)]}})
    return {bag.slide_id: bag for bag in open_bags(config, Store(root), run)}


class TrialProcess(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Trains one trial after another in its own process, an epoch a step.

    What is over already is told again from its record. A trial that was lost goes on from its last checkpoint.
    """

    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:
        """Open a trial."""
        torch.set_num_threads(1)
        if not sweep.is_gpu:
            keep_freed_memory()
        self._sweep, self._epoch, self._saved = sweep, 0, time.monotonic()
        self._trial: Trial | None = None
        self._task = sweep.task(config)
        known = read_trial(sweep, self._task)
        self._known = known.rows if known is not None and known.is_over else []

    def step(self) -> dict[str, Any]:
        """Train an epoch and return its row."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        if self._known:
            row, is_last = self._known[epoch], epoch + 1 == len(self._known)
        else:
            try:
                row, is_last = self._train(epoch)
            except DistmilError as error:  # every retry would end in it as well
                return report({}, epoch, error=str(error)) | {tune.result.DONE: True}
        found = report(row, epoch, score=score_of(row, self._sweep.metric), is_last=is_last)
        return found | {tune.result.DONE: is_last}

    def _train(self, epoch: int) -> tuple[Row, bool]:
        sweep, config = self._sweep, self._sweep.config(self._task)
        bags = _bags(sweep.root, sweep.run, config.labels.form, len(config.cohort.classes))
        if self._trial is None:
            folds = [Fold([bags[i] for i in learning], [bags[i] for i in judging]) for learning, judging in sweep.folds]
            self._trial = Trial(
                config, folds, sweep.spec, sweep.store,
                name=sweep.checkpoint(self._task), device=choose_device(is_gpu=sweep.is_gpu),
            )  # fmt: skip
        row = self._trial.row(epoch)
        is_last = epoch + 1 >= config.training.epochs or self._trial.is_finished(epoch)
        if is_last and self._task.is_repeat and sweep.held_out:
            found = self._trial.judge([bags[i] for i in sweep.held_out])
            row = row | {f"{HELD_OUT}{name}": value for name, value in found.items()}
        if not is_last and time.monotonic() - self._saved > CHECKPOINT_S:
            self._trial.save()
            self._saved = time.monotonic()
        return row, is_last

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process."""
        self.setup(new_config)  # type: ignore[call-arg]  # Tune fills in the sweep
        return True


def report(
    row: Row, epoch: int, *, score: float | None = None, is_last: bool = False, error: str | None = None
) -> dict[str, Any]:
    """Return what Tune is told of an epoch."""
    score = WORST if score is None else score
    return {"epoch": epoch + 1, "score": score, "row": row, "is_last": is_last, "error": error}


def train_group(config: dict[str, Any], sweep: Sweep) -> None:
    """Train a trial of several workers: a group of its own, named by the trial, which goes on where it stopped."""
    task = sweep.task(config)
    known = read_trial(sweep, task)
    if known is not None and known.is_over:
        for epoch, row in enumerate(known.rows, start=1):
            score = score_of(row, sweep.metric)
            tune.report(report(row, epoch - 1, score=score, is_last=epoch == len(known.rows)))
        return
    inner, store = sweep.checkpoint(task).replace("/", "-"), sweep.store
    store.write_json(run_file(inner, "cohort"), store.read_json(run_file(sweep.run, "cohort")))
    try:
        trainer = make_trainer(store, sweep.config(task), inner, sweep.spec, [_ScoreCallback(sweep.metric)])
        result = trainer.fit()
        if failure := (result.return_value or {}).get("error"):
            raise failure
        history = read_history(store, inner)
        assert history is not None
        row = history.rows[-1]
        tune.report(report(row, len(history.rows) - 1, score=score_of(row, sweep.metric), is_last=True))
    except DistmilError as error:
        tune.report(report({}, 0, error=str(error)))


class _ScoreCallback(TuneReportCallback):  # type: ignore[misc]  # Ray ships no types
    """Hands a group's rows to Tune in the form of a trial's."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Hand on rank 0's row, which is the group's."""
        row = {name: value for name, value in metrics[0].items() if name not in {"epoch", "epoch_s"}}
        super().after_report(
            run_context, [report(row, int(metrics[0]["epoch"]), score=score_of(row, self._metric))], checkpoint
        )


# --- running many ------------------------------------------------------------------------------------------------


@dataclass
class TrialBook(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Keeps a record of every trial, in the driver: what is written here is what a restarted search goes on from."""

    sweep: Sweep
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

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open a record, or go on with an earlier one."""
        if trial.trial_id in self.records:
            self.records[trial.trial_id].rows.clear()  # it was lost, and tells its rows again
            return
        task = self.sweep.task(trial.config)
        known = read_trial(self.sweep, task)
        record = TrialRecord(dict(task.values), task.seed, task.is_repeat, number=len(self.records))
        self.records[trial.trial_id] = record
        self._started[trial.trial_id] = time.monotonic()
        if known is not None:
            record.mlflow = known.mlflow
            if known.is_over:
                self._over[trial.trial_id] = known
                return
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
        if record.error is not None:
            record.status = "failed"
        elif known is not None:
            record.status, record.seconds = known.status, known.seconds
        else:
            record.status = "finished" if trial.last_result.get("is_last") else "stopped"
        self._close(trial, record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close a trial that was lost too often."""
        record = self.records.get(trial.trial_id)
        if record is not None:
            lines = (trial.error_file and trial.get_error() and str(trial.get_error()).strip().splitlines()) or []
            record.status, record.error = "failed", lines[-1] if lines else "its process or node was lost too often"
            self._close(trial, record)

    def _close(self, trial: Any, record: TrialRecord) -> None:
        was_over = trial.trial_id in self._over
        if not was_over:
            record.seconds = time.monotonic() - self._started[trial.trial_id]
            self._write(record)
        self.on_end(record, was_over=was_over)
        if record.is_over:
            clear_checkpoints(self.sweep, record.task)

    def _write(self, record: TrialRecord) -> None:
        self.sweep.store.write_json(self.sweep.record_file(record.task), record.to_json())


def clear_checkpoints(sweep: Sweep, task: Task) -> None:
    """Delete the checkpoints of a trial that is over."""
    for i in range(len(sweep.folds)):
        folder = f"checkpoints/{sweep.checkpoint(task)}/fold-{i}"
        for name in sweep.store.names(folder):
            sweep.store.delete(f"{folder}/{name}")


def search_trials(
    sweep: Sweep, config: Config, space: Mapping[str, Domain], first: Sequence[Values], book: TrialBook
) -> None:
    """Run the search's trials, those of ``first`` before all others.

    Raises:
        ConfigError: If what trials need is not there, or Optuna is not installed.
    """
    search = config.search
    is_grid = search.algorithm == "grid"
    space_of = {key: tune.grid_search(list(d.values)) if is_grid else _domain(d) for key, d in space.items()}
    points = [] if is_grid else [dict(values) for values in first]
    if search.algorithm == "optuna":
        algorithm = _optuna(points, seed=config.training.seed)
    else:
        algorithm = BasicVariantGenerator(points_to_evaluate=points or None, random_state=config.training.seed)
    scheduler = FIFOScheduler()
    if search.stopping == "asha" and config.training.epochs > search.grace_epochs:
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=config.training.epochs,
            grace_period=search.grace_epochs,
            reduction_factor=search.reduction,
            stop_last_trials=False,
        )
    samples = 1 if is_grid else search.trials
    _run(sweep, config, space_of, samples, book, algorithm=algorithm, scheduler=scheduler)


def run_tasks(sweep: Sweep, config: Config, tasks: Sequence[Task], book: TrialBook) -> None:
    """Train some settings to the end. Raises: ConfigError if what they need is not there."""
    _run(sweep, config, {TASK: tune.grid_search(list(tasks))}, 1, book, algorithm=BasicVariantGenerator(),
         scheduler=FIFOScheduler())  # fmt: skip


def _run(
    sweep: Sweep,
    config: Config,
    space: dict[str, Any],
    samples: int,
    book: TrialBook,
    *,
    algorithm: Any,
    scheduler: Any,
) -> None:
    resources = trial_resources(config, is_gpu=sweep.is_gpu)
    at_once = concurrency(config, resources)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the book keeps the records
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 nothing; the new one has tables on stdout
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    single = config.training.num_workers == 1
    trainable = tune.with_parameters(TrialProcess if single else train_group, sweep=sweep)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=samples, search_alg=algorithm, scheduler=scheduler,
            max_concurrent_trials=at_once, reuse_actors=single,
        ),
        run_config=tune.RunConfig(
            name=sweep.run,
            storage_path=sweep.store.path("ray-tune"),
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
    needs = dict(resources) if workers == 1 else {"CPU": float(workers)} | ({"GPU": float(workers)} if is_gpu else {})
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
