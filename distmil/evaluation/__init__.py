"""Metrics, their intervals, and slides as people look at them."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.evaluation.intervals import intervals_of
    from distmil.evaluation.metrics import summarise

__all__ = ["intervals_of", "summarise"]

lazy_exports(__name__)
