"""Finished predictions to look at in a browser: deep zoom, maps, outlines, top patches."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.viewing.slide_view import SlideView

__all__ = ["SlideView"]

lazy_exports(__name__)
