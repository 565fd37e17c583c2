"""The record in MLflow."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.tracking.tracker import Tracker

__all__ = ["Tracker"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "tracker": ["Tracker"],
})  # fmt: skip
