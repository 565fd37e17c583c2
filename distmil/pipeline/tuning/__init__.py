"""The search on Ray Tune."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.pipeline.tuning.job import run

__all__ = ["run"]

lazy_exports(__name__)
