"""The work of each worker of a pre-training."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray.train
import torch

from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec
from distmil.pipeline.training.worker import as_worker, check_alike, choose_device, fetch, read_entries
from distmil.pretraining.checkpoints import save_checkpoint
from distmil.pretraining.run import Run, open_run
from distmil.storage.store import Store
from distmil.training.ownership import Lease
from distmil.training.workers import Workers


def pretrain_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Pre-train on one worker: every worker holds the same plan and takes its piece of each batch."""
    spec, lease = EncoderSpec(**settings["spec"]), Lease(**settings["lease"])

    def work(config: Config, store: Store, workers: Workers) -> dict[str, Any]:
        name, device = settings["run"], choose_device(is_gpu=settings["is_gpu"])
        fetch(store, name, workers)
        entries, threads = read_entries(store, name), settings["threads"]
        run = workers.together(
            partial(open_run, config, entries, spec, store, name=name, device=device, threads=threads)
        )
        history = run.history
        check_alike(len(history.losses), (history.losses[-1:], history.rows[-1:]), workers, unit="steps")
        return _run_epochs(run, _Keeper(run, store, name, lease, workers))

    return as_worker(settings, work)


def _run_epochs(run: Run, keeper: "_Keeper") -> dict[str, Any]:
    while not run.is_finished:
        started = time.monotonic()
        row = run.advance(keeper.workers, keeper.after_step)
        keeper.keep()
        ray.train.report({**row, "epoch": run.history.epochs_done, "epoch_s": time.monotonic() - started})
    return {"steps": len(run.history.losses)}


@dataclass
class _Keeper:
    """Writes checkpoints: at the end of an epoch, and when enough minutes have passed by the clock of rank 0."""

    run: Run
    store: Store
    name: str
    lease: Lease
    workers: Workers
    _kept_at: float = field(default_factory=time.monotonic)

    def after_step(self, _loss: float) -> None:
        """Write a checkpoint if it is time; the workers agree on that."""
        passed_s = time.monotonic() - self._kept_at
        is_due = self.workers.rank == 0 and passed_s >= 60 * self.run.config.pretraining.checkpoint_minutes
        votes = torch.tensor([float(is_due)], device=self.run.learner.device)
        if self.workers.sum(votes).item():
            self.keep()

    def keep(self) -> None:
        """Write a checkpoint on rank 0 while the others wait."""
        run = self.run
        self.workers.on_rank_0(
            partial(save_checkpoint, self.store, self.name, run.learner, run.history, lease=self.lease)
        )
        self._kept_at = time.monotonic()
