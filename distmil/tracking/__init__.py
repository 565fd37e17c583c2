"""The record in MLflow."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.tracking.tracker import Tracker

__all__ = ["Tracker"]

lazy_exports(__name__)
