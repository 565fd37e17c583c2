"""Self-supervised pre-training of an encoder on a cohort's own patches."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.pretraining.history import History
    from distmil.pretraining.plan import Plan
    from distmil.pretraining.run import Run, open_run
    from distmil.pretraining.weights import save_weights

__all__ = ["History", "Plan", "Run", "open_run", "save_weights"]

lazy_exports(__name__)
