"""The training of a search's trials: in the trial's own process where one worker is enough, else by workers."""

import functools
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ray.exceptions import RayError, RayTaskError
from ray.train import UserCallback

from distmil.bags.bag import Bag
from distmil.config.root import Config
from distmil.errors import DistmilError, StorageError
from distmil.pipeline.training.worker import open_bags, read_history
from distmil.pipeline.training.workers import check_finished, make_trainer
from distmil.pipeline.tuning.plan import SearchPlan
from distmil.search.fold_training import Fold, FoldTraining, evaluate_run, kept_row
from distmil.search.trial import WORST, Row, Trial, score_of
from distmil.storage.store import Store
from distmil.training.engine import History
from distmil.training.ownership import take_over
from distmil.training.run import is_finished
from distmil.training.run_files import checkpoint_folder, run_file

CHECKPOINT_S = 30.0
"""Seconds of work that a lost trial may lose."""
WORKER_CORES = 1
"""CPU cores of each worker of a trial, by which trials at once are counted."""
HELD_OUT = "held_out_"
Report = dict[str, Any]
"""Of an epoch, from a trial to the driver."""
_MAX_WORDS = 300


@functools.cache
def _bags(root: str, run: str, form: str, num_classes: int) -> dict[str, Bag]:
    """Open the search's bags, by slide, once in a process, whatever it trains."""
    return {bag.slide_id: bag for bag in open_bags(Store(root), run, form=form, num_classes=num_classes)}


def search_bags(plan: SearchPlan) -> dict[str, Bag]:
    """Open the search's bags, by slide."""
    return _bags(plan.root, plan.run, plan.config.labels.form, len(plan.config.cohort.classes))


def trial_device(*, is_gpu: bool) -> torch.device:
    """Choose the GPU that Ray gave this process, the only one that it sees, or the CPU.

    ``ray.train.torch`` finds GPUs in a Train worker alone.
    """
    return torch.device("cuda", 0) if is_gpu and torch.cuda.is_available() else torch.device("cpu")


class TrialTraining:
    """Trains a trial in this process, an epoch a step; a lost trial goes on from its checkpoint."""

    def __init__(self, plan: SearchPlan, trial: Trial) -> None:
        self._plan, self._trial = plan, trial
        self._epoch, self._saved_s = 0, time.monotonic()
        self.failure: Exception | None = None
        """The next step raises it: this process may not be fit for another trial."""

    def step(self) -> Report:
        """Train an epoch and report its row, or a failure. Raises: ``failure``."""
        if self.failure is not None:
            raise self.failure
        epoch, self._epoch = self._epoch, self._epoch + 1
        try:
            row, is_last = self._train(epoch)
        except Exception as error:  # noqa: BLE001 (reported, and raised in the next step)
            self.failure = None if is_of_the_setting(error) else error
            return failure_report(error, epoch)
        return report(row, epoch, score=score_of(row, self._plan.metric), is_last=is_last)

    @functools.cached_property
    def _training(self) -> FoldTraining:
        plan, trial, bags = self._plan, self._trial, search_bags(self._plan)
        folds = [
            Fold([bags[i] for i in learning], [bags[i] for i in validation]) for learning, validation in plan.folds
        ]
        return FoldTraining(
            plan.trial_config(trial), folds, plan.spec, plan.store,
            name=plan.checkpoint(trial), device=trial_device(is_gpu=plan.is_gpu),
            keeps_best=trial.is_repeat and bool(plan.held_out),
        )  # fmt: skip

    def _train(self, epoch: int) -> tuple[Row, bool]:
        training, held_out = self._training, self._plan.held_out
        row, is_last = training.row(epoch), training.is_finished(epoch)
        if is_last and self._trial.is_repeat and held_out:
            bags = search_bags(self._plan)
            row = row | _held_out(training.evaluate([bags[i] for i in held_out]))
        if not is_last and time.monotonic() - self._saved_s > CHECKPOINT_S:
            training.save()
            self._saved_s = time.monotonic()
        return row, is_last


def fit_workers(
    plan: SearchPlan,
    trial: Trial,
    *,
    tell: Callable[[Report], None],
    make_callback: Callable[[Callable[[Report], Report]], UserCallback],
) -> None:
    """Train a trial of several workers: workers of its own, named by the trial, which go on where they stopped.

    Args:
        plan: The search's.
        trial: The trial's.
        tell: Takes the reports of epochs that an earlier try committed, and of the last one with held-out slides.
        make_callback: Makes the workers' callback of what turns a row of rank 0, which is all workers', into a report.
    """
    config, inner, store = plan.trial_config(trial), plan.inner_run(trial), plan.store
    entries = store.read_checked(run_file(plan.run, "cohort"), owner=plan.run)
    store.write_checked(run_file(inner, "cohort"), entries, owner=inner)
    history = read_history(store, inner) or History()
    for epoch in range(len(history.rows)):
        tell(workers_report(history.rows, epoch, config, plan.metric))
    rows = list(history.rows)

    def report_epoch(metrics: Report) -> Report:
        epoch = int(metrics["epoch"])
        rows[epoch:] = [{name: value for name, value in metrics.items() if name not in {"epoch", "epoch_s"}}]
        return workers_report(rows, epoch, config, plan.metric)

    if not is_finished(history, config):
        callback = make_callback(report_epoch)
        lease = take_over(store, checkpoint_folder(inner), run=inner)
        result = make_trainer(store, config, inner, plan.spec, [callback], lease=lease, cores=WORKER_CORES).fit()
        if failure := (result.return_value or {}).get("error"):
            raise failure
        history = check_finished(read_history(store, inner), config, inner)
    found = workers_report(history.rows, len(history.rows) - 1, config, plan.metric) | {"is_last": True}
    if trial.is_repeat and plan.held_out:
        bags = search_bags(plan)
        unseen = evaluate_run(config, [bags[i] for i in plan.held_out], plan.spec, store, name=inner)
        found["row"] = found["row"] | _held_out(unseen)
    tell(found)


def workers_report(rows: Sequence[Row], epoch: int, config: Config, metric: str) -> Report:
    """Report an epoch of workers by the row of the network that they would have kept."""
    row = kept_row(History(list(rows)), config.training, epoch)
    return report(row, epoch, score=score_of(row, metric), is_last=epoch + 1 >= config.training.epochs)


def report(
    row: Row, epoch: int, *, score: float | None = None, is_last: bool = False, error: str | None = None,
    is_lost: bool = False,
) -> Report:  # fmt: skip
    """Build the report of an epoch that a trial hands to the driver."""
    score = WORST if score is None else score
    return {"epoch": epoch + 1, "score": score, "row": row, "is_last": is_last, "error": error, "is_lost": is_lost}


def failure_report(error: Exception, epoch: int) -> Report:
    """Build the report of a failure."""
    return report({}, epoch, error=in_words(error), is_lost=is_lost(error))


def is_of_the_setting(error: Exception) -> bool:
    """Return whether every start of a trial would end in an error that leaves its process whole."""
    return isinstance(error, DistmilError) and not isinstance(error, StorageError)


def is_lost(failure: BaseException | None) -> bool:
    """Return whether a trial may well go on elsewhere: its process, its node or its storage did not hold.

    Every start would raise anything else again, such as a lack of GPU memory.
    """
    while isinstance(failure, RayTaskError):
        failure = failure.cause
    return failure is None or (isinstance(failure, StorageError | RayError) and type(failure) is not RayError)


def in_words(failure: Exception) -> str:
    """Word a failure: an error of distmil as it is, else the last line, shortened, for Ray guesses at causes."""
    if isinstance(failure, DistmilError) and not isinstance(failure, RayTaskError):
        return str(failure)
    lines = f"{type(failure).__name__}: {failure}".strip().splitlines()
    return textwrap.shorten(lines[-1], _MAX_WORDS, placeholder=" ...")


def _held_out(row: Row) -> Row:
    return {f"{HELD_OUT}{name}": value for name, value in row.items()}
