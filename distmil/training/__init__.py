"""Epochs, steps and checkpoints of one run."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.training.checkpoints import load_checkpoint, save_checkpoint
    from distmil.training.engine import History, evaluate, train_epoch
    from distmil.training.run import Run, open_run
    from distmil.training.workers import Workers

__all__ = ["History", "Run", "Workers", "evaluate", "load_checkpoint", "open_run", "save_checkpoint", "train_epoch"]

lazy_exports(__name__)
