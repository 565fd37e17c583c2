"""Trials under Ray Tune: in the trial's own process where one worker is enough, else a worker group of its own."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from distmil.bags.bag import Bag
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.errors import DistmilError, StorageError
from distmil.pipeline.training.group import check_finished, make_trainer
from distmil.pipeline.training.worker import open_bags, read_history, run_file
from distmil.processes.malloc import keep_freed_memory
from distmil.search.space import WORST, Task, TrialRecord, score_of, with_values
from distmil.search.trial import Fold, Row, Trial, judge_run, kept_row
from distmil.storage.store import Store
from distmil.training.checkpoints import checkpoint_folder
from distmil.training.engine import History
from distmil.training.ownership import Lease, take_over
from distmil.training.run import is_finished

CHECKPOINT_S = 30.0
"""Seconds of work that a lost trial may lose."""
WORKER_CORES = 1
"""CPU cores of each worker of a trial's group, by which trials at once are counted."""
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
    claim: str = ""
    """Fingerprint of everything that the search was started with."""
    lease: Lease | None = None
    """The job's right to write the search's records; None where no other job can know the search."""

    @property
    def store(self) -> Store:
        """Return the store."""
        return Store(self.root)

    @property
    def is_grouped(self) -> bool:
        """Return whether a trial is trained by a group of workers."""
        return bool(self.values["training"]["num_workers"] > 1)

    def config(self, task: Task) -> Config:
        """Return a trial's configuration. Raises: ConfigError."""
        return with_values(build_config(self.values), {**task.values, "training.seed": task.seed})

    def task(self, config: Mapping[str, Any]) -> Task:
        """Return what Tune wants to be trained."""
        found: Task = config[TASK]
        return found

    def record_file(self, task: Task) -> str:
        """Return the name of a trial's record."""
        return f"{search_folder(self.run)}/trials/{task.key}.json"

    def check_lease(self) -> None:
        """Look whether the search still belongs to this job. Raises: TrainingError, StorageError."""
        if self.lease is not None:
            self.lease.check(self.store)

    def checkpoint(self, task: Task) -> str:
        """Return the name under which a trial's checkpoints are."""
        return f"{self.run}/{task.key}"

    def group(self, task: Task) -> str:
        """Return the name of the training run that a group of workers makes of a trial."""
        return f"{self.run}-{task.key}"


def search_folder(run: str) -> str:
    """Return the folder of a search."""
    return f"searches/{run}"


def read_trials(sweep: Sweep) -> dict[str, TrialRecord]:
    """Return what is known of all trials of the search and of its comparison, by task."""
    folder = f"{search_folder(sweep.run)}/trials"
    keys = [name.removesuffix(".json") for name in sweep.store.names(folder) if name.endswith(".json")]
    found = [sweep.store.read_checked(f"{folder}/{key}.json", owner=f"{sweep.run}/{key}") for key in keys]
    records = [TrialRecord(**values) for values in found if values.get("claim") == sweep.claim]
    return {record.task.key: record for record in records}


def read_trial(sweep: Sweep, task: Task) -> TrialRecord | None:
    """Return what is known of a trial, None if it was never started."""
    try:
        return TrialRecord(**sweep.store.read_checked(sweep.record_file(task), owner=f"{sweep.run}/{task.key}"))
    except FileNotFoundError:
        return None


def write_trial(sweep: Sweep, record: TrialRecord) -> None:
    """Write down what is known of a trial.

    Raises:
        TrainingError: If the search belongs to another job now.
        StorageError: If the store cannot be written.
    """
    sweep.check_lease()
    task = record.task
    sweep.store.write_checked(sweep.record_file(task), record.to_json(), owner=f"{sweep.run}/{task.key}")


def clear_trial(sweep: Sweep, task: Task) -> None:
    """Delete what only a trial in progress needs: its checkpoints, and Ray's folder of its group."""
    inner = sweep.group(task)
    for folder in [checkpoint_folder(inner), f"ray-train/{inner}"] if sweep.is_grouped else []:
        sweep.store.delete_folder(folder)
    sweep.store.delete_folder(checkpoint_folder(sweep.checkpoint(task)))


@functools.cache
def _bags(root: str, run: str, form: str, classes: int) -> dict[str, Bag]:
    """Return the search's bags by slide; they are opened once in a process, whatever it trains."""
    config = build_config({"labels": {"form": form}, "cohort": {"classes": [f"class {i}" for i in range(classes)]}})
    return {bag.slide_id: bag for bag in open_bags(config, Store(root), run)}


def trial_device(*, is_gpu: bool) -> torch.device:
    """Return the GPU that Ray gave this process, the only one that it sees, or the CPU.

    ``ray.train.torch`` knows of GPUs in a Train worker alone.
    """
    return torch.device("cuda", 0) if is_gpu and torch.cuda.is_available() else torch.device("cpu")


class TrialProcess(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Trains one trial after another in its own process, an epoch a step; a lost one goes on from its checkpoint."""

    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:
        """Open a trial."""
        torch.set_num_threads(1)
        if not sweep.is_gpu:
            keep_freed_memory()
        self._sweep, self._epoch, self._saved = sweep, 0, time.monotonic()
        self._trial: Trial | None = None
        self._task = sweep.task(config)

    def step(self) -> dict[str, Any]:
        """Train an epoch and return its row."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        try:
            row, is_last = self._train(epoch)
        except StorageError:  # it may hold at the next try
            raise
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
                name=sweep.checkpoint(self._task), device=trial_device(is_gpu=sweep.is_gpu),
                keeps_best=self._task.is_repeat and bool(sweep.held_out),
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
    try:
        _fit_group(sweep, task)
    except StorageError:
        raise
    except DistmilError as error:
        tune.report(report({}, 0, error=str(error)))


def _fit_group(sweep: Sweep, task: Task) -> None:
    """Tell what an earlier try of the trial committed, train what is missing, and tell its last row with held-out."""
    config, inner, store = sweep.config(task), sweep.group(task), sweep.store
    entries = store.read_checked(run_file(sweep.run, "cohort"), owner=sweep.run)
    store.write_checked(run_file(inner, "cohort"), entries, owner=inner)
    history = read_history(store, inner) or History()
    for epoch in range(len(history.rows)):
        tune.report(group_report(history.rows, epoch, config, sweep.metric))
    if not is_finished(history, config):
        callback = _ScoreCallback(history.rows, config, sweep.metric)
        lease = take_over(store, checkpoint_folder(inner), run=inner)
        result = make_trainer(store, config, inner, sweep.spec, [callback], lease=lease, cores=WORKER_CORES).fit()
        if failure := (result.return_value or {}).get("error"):
            raise failure
        history = check_finished(read_history(store, inner), config, inner)
    found = group_report(history.rows, len(history.rows) - 1, config, sweep.metric) | {"is_last": True}
    if task.is_repeat and sweep.held_out:
        found["row"] = found["row"] | _judge_group(sweep, config, inner)
    tune.report(found)


def _judge_group(sweep: Sweep, config: Config, inner: str) -> Row:
    """Return what the group's network makes of held-out slides; the losses that are on say nothing in an evaluation."""
    bags = _bags(sweep.root, sweep.run, config.labels.form, len(config.cohort.classes))
    found = judge_run(config, [bags[i] for i in sweep.held_out], sweep.spec, sweep.store, name=inner)
    return {f"{HELD_OUT}{name}": value for name, value in found.items()}


def group_report(rows: Sequence[Row], epoch: int, config: Config, metric: str) -> dict[str, Any]:
    """Return what Tune is told of a group's epoch: the row of the network that it would have kept."""
    row = kept_row(History(list(rows)), config.training, epoch)
    return report(row, epoch, score=score_of(row, metric), is_last=epoch + 1 >= config.training.epochs)


class _ScoreCallback(TuneReportCallback):  # type: ignore[misc]  # Ray ships no types
    """Hands a group's rows to Tune in the form of a trial's."""

    def __init__(self, rows: Sequence[Row], config: Config, metric: str) -> None:
        super().__init__()
        self._rows, self._config, self._metric = list(rows), config, metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Hand on rank 0's row, which is the group's."""
        epoch = int(metrics[0]["epoch"])
        row = {name: value for name, value in metrics[0].items() if name not in {"epoch", "epoch_s"}}
        self._rows = [*self._rows[:epoch], row]
        found = group_report(self._rows, epoch, self._config, self._metric)
        super().after_report(run_context, [found], checkpoint)
