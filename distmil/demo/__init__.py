"""A procedural cohort, for the demo and the tests."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.demo.cohort import encode_slide, make_cohort
    from distmil.demo.drawing import draw_slide

__all__ = ["draw_slide", "encode_slide", "make_cohort"]

lazy_exports(__name__)
