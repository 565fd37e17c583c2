"""The progress of a run: its epochs in MLflow and on the terminal, and its waits for nodes."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ray.train import UserCallback

from distmil.config.root import Config
from distmil.console import describe
from distmil.errors import StorageError
from distmil.models.losses import LOSSES
from distmil.pace import Pace
from distmil.pipeline.cluster import node_resources
from distmil.pipeline.job import Job
from distmil.pipeline.training.worker import read_history
from distmil.processes.background import in_background
from distmil.storage.store import Store
from distmil.tracking.tracker import Tracker

POLL_S = 1.0
NODES_INTERVAL_S = 10.0
"""Between looks at the nodes. A lack is reported at the second look, for a node may just be replaced."""

Row = Mapping[str, float | None]


class MetricsCallback(UserCallback):  # type: ignore[misc]  # Ray ships no types
    """Sends what workers report to MLflow, from the controller; a failure there never reaches the training."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Log rank 0's metrics, which are all workers'."""
        row = dict(metrics[0])
        epoch = int(row.pop("epoch"))
        self._tracker.log_metrics(row, step=epoch)


@contextmanager
def watched(job: Job, run: str, config: Config, worker: Mapping[str, float]) -> Iterator[None]:
    """Show a run's epochs and its waits until the block ends.

    Args:
        job: Whose store and console it is.
        run: The run's name.
        config: Its configuration.
        worker: Resources of one worker.
    """
    count = config.training.epochs
    pace = Pace(count - len(_rows(job.store, run)))

    def show(*, is_last: bool) -> None:
        _show_epochs(job, _rows(job.store, run), pace, count, is_last=is_last)

    with watching(job, worker, show, needed=config.training.min_workers or config.training.num_workers):
        yield


class Show(Protocol):
    """Shows what is new of a run; the last call comes when its workers have ended."""

    def __call__(self, *, is_last: bool) -> None:
        """Show it."""


@contextmanager
def watching(job: Job, worker: Mapping[str, float], show: Show, *, needed: int) -> Iterator[None]:
    """Show a run's progress and its workers' waits for nodes until the block ends.

    Args:
        job: Whose console it is.
        worker: Resources of one worker.
        show: Called now and then.
        needed: Fewest workers.
    """
    room = _Room(job, worker, needed=needed)

    def watch(stop: threading.Event) -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(POLL_S)
            show(is_last=is_last)
            if not is_last:
                room.show()

    with in_background(watch, "watch-training"):
        yield


def _show_epochs(job: Job, rows: Sequence[Row], pace: Pace, count: int, *, is_last: bool) -> None:
    """Show the rows after those that the pace has counted, about ten of ``count`` epochs."""
    every, before = max(1, count // 10), count - round(pace.total)
    for epoch in range(before + round(pace.done), len(rows)):
        pace.add(1)
        if (epoch + 1) % every == 0 or epoch == 0 or (is_last and epoch == len(rows) - 1):
            found = describe(pace, "epochs")
            job.console.note(_epoch_line(epoch, count, rows[epoch]) + (f"; {found}" if found else ""))


class _Room:
    """Reports when the cluster's nodes cannot carry the workers, which wait for them silently."""

    def __init__(self, job: Job, worker: Mapping[str, float], *, needed: int) -> None:
        self._job, self._worker, self._needed = job, worker, needed
        self._next_look, self._was_short = 0.0, False
        self._reported: int | None = None

    def show(self) -> None:
        """Look at the nodes now and then, and report when they are too few twice in a row, or enough again."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + NODES_INTERVAL_S
        there = workers_that_fit(node_resources(), self._worker)
        is_short = there < self._needed
        if is_short and self._was_short and there != self._reported:
            each = ", ".join(f"{amount:g} {name}" for name, amount in self._worker.items())
            self._job.console.note(
                f"waiting for nodes: those that are there carry {there} of {self._needed} worker(s) of {each}"
            )
            self._reported = there
        elif not is_short and self._reported is not None:
            self._job.console.note(f"nodes for {self._needed} worker(s) are there again")
            self._reported = None
        self._was_short = is_short


def workers_that_fit(nodes: Sequence[Mapping[str, Any]], worker: Mapping[str, float]) -> int:
    """Count the workers of given resources that nodes of given resources carry when nothing else runs there."""
    asked = {name: amount for name, amount in worker.items() if amount > 0}
    return sum(min(int(node.get(name, 0) // amount) for name, amount in asked.items()) for node in nodes)


def _rows(store: Store, run: str) -> Sequence[Row]:
    try:
        history = read_history(store, run)
    except StorageError:
        return []
    return history.rows if history else []


def _epoch_line(epoch: int, epochs: int, row: Row) -> str:
    """Word an epoch: the whole loss and its parts, then what validation says."""
    parts = [f"{name} {value:.3f}" for name in LOSSES if (value := row.get(f"loss_{name}")) is not None]
    names = {
        "val_slide_loss": "val loss",
        "val_slide_auc": "slide AUC",
        "val_patch_auc_probability": "patch AUC",
        "val_patch_ap_probability": "patch AP",
    }
    found = [f"{label} {value:.3f}" for name, label in names.items() if (value := row.get(name)) is not None]
    loss = row.get("loss")
    whole = "" if loss is None else f"loss {loss:.3f}" + (f" ({', '.join(parts)})" if parts else "")
    return f"epoch {epoch + 1}/{epochs}: " + ", ".join([*([whole] if whole else []), *found])
