"""The slides of a job: what the manifest says of them, and how they are split."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.cohort.manifest import read_cohort
    from distmil.cohort.slides import Cohort, Slide, draw_splits

__all__ = ["Cohort", "Slide", "draw_splits", "read_cohort"]

lazy_exports(__name__)
