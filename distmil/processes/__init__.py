"""Processes: what a job started, signals, children that may crash, work in the background."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.processes.background import in_background
    from distmil.processes.child import Child, ChildCrashed, ChildTimedOut
    from distmil.processes.interruption import Interrupted, interruption_held

__all__ = ["Child", "ChildCrashed", "ChildTimedOut", "Interrupted", "in_background", "interruption_held"]

lazy_exports(__name__)
