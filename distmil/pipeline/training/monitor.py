"""The progress of a run: its epochs in MLflow and on the terminal, and its waits for nodes."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
        """Log rank 0's metrics, which are the group's."""
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
    epochs = _Epochs(job, run, config.training.epochs)
    room = _Room(job, worker, needed=config.training.min_workers or config.training.num_workers)

    def watch(stop: threading.Event) -> None:
        while not stop.wait(POLL_S):
            epochs.show(is_last=False)
            room.show()
        epochs.show(is_last=True)

    with in_background(watch, "watch-training"):
        yield


class _Epochs:
    """Shows about ten epochs of a run, the first and the last among them."""

    def __init__(self, job: Job, run: str, count: int) -> None:
        self._job, self._run, self._count = job, run, count
        self._shown = len(_rows(job.store, run))
        self._pace = Pace(count - self._shown)

    def show(self, *, is_last: bool) -> None:
        """Show the epochs that are new."""
        rows = _rows(self._job.store, self._run)
        every = max(1, self._count // 10)
        for epoch in range(self._shown, len(rows)):
            self._pace.add(1)
            if (epoch + 1) % every == 0 or epoch == 0 or (is_last and epoch == len(rows) - 1):
                pace = describe(self._pace, "epochs")
                self._job.console.note(_epoch_line(epoch, self._count, rows[epoch]) + (f"; {pace}" if pace else ""))
        self._shown = len(rows)


class _Room:
    """Reports when the cluster's nodes cannot carry the group, which waits for them silently."""

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
