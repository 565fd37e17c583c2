"""The stages on Ray. Only this package imports Ray."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.pipeline.job import Job

__all__ = ["Job"]

lazy_exports(__name__)
