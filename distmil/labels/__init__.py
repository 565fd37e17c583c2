"""Annotations to patch labels."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.labels.rules import LabelRule, label_patches
    from distmil.labels.slide_outlines import SlideOutlines
    from distmil.labels.tables import SlideLabeller

__all__ = ["LabelRule", "SlideLabeller", "SlideOutlines", "label_patches"]

lazy_exports(__name__)
