"""The training job on Ray Train."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.pipeline.training.job import run

__all__ = ["run"]

lazy_exports(__name__)
