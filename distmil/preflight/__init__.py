"""Checks of seconds before work of hours."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.preflight.checks import check_job

__all__ = ["check_job"]

lazy_exports(__name__)
