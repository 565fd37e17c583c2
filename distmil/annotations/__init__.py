"""What people drew on a slide: files to areas in level-0 pixels."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.annotations.outlines import Annotation
    from distmil.annotations.reader import annotation_checksum, read_annotation

__all__ = ["Annotation", "annotation_checksum", "read_annotation"]

lazy_exports(__name__)
