"""Processes: what a job started, signals, children that may crash, work in the background."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.processes.background import in_background
    from distmil.processes.child import Child, ChildCrashed, ChildTimedOut
    from distmil.processes.interruption import Interrupted, interruption_held

__all__ = ["Child", "ChildCrashed", "ChildTimedOut", "Interrupted", "in_background", "interruption_held"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "background": ["in_background"],
    "child": ["Child", "ChildCrashed", "ChildTimedOut"],
    "interruption": ["Interrupted", "interruption_held"],
})  # fmt: skip
