"""Slide files to pixels."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.slides.image import SlideImage, overview
    from distmil.slides.reader import open_slide
    from distmil.slides.tissue import detect_tissue

__all__ = ["SlideImage", "detect_tissue", "open_slide", "overview"]

lazy_exports(__name__)
