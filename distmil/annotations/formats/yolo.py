"""YOLO text: a line for each box or polygon of one plain image, in shares of its width and height.

A line is a class number and a box's centre and size, or a class number and corners. The class number is the group.
"""

import re

import numpy as np

from distmil.annotations.outlines import Outlines, rectangle, to_points
from distmil.annotations.slide_facts import SlideFacts
from distmil.errors import AnnotationError

NAME = "YOLO text"
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(rf"\d+(?:\s+{_NUMBER}){{4,}}", re.ASCII)
_MOST = 2.0
"""Largest share; what crosses the image's edge may be a little above 1."""


def matches(text: str) -> bool:
    """Say whether the first line is one of YOLO's."""
    first = next((line.strip() for line in text[:65536].splitlines() if line.strip()), "")
    return _LINE.fullmatch(first) is not None


def read(text: str, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "yolo"
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if not _LINE.fullmatch(line.strip()):
            raise _wrong(number, "is not a class number and at least 4 numbers")
        group, *values = line.split()
        if len(values) % 2:
            raise _wrong(number, f"has {len(values)} numbers behind its class (a confidence?)")
        share_N2 = to_points(list(zip(values[::2], values[1::2], strict=True)))
        if np.abs(share_N2).max() > _MOST:
            raise _wrong(number, "holds pixels")
        if len(share_N2) == 2:
            centre, size = share_N2
            share_N2 = rectangle(np.stack([centre - size / 2, centre + size / 2]))
        outlines.add(group, [share_N2 * np.array(slide.size)])


def _wrong(number: int, what: str) -> AnnotationError:
    return AnnotationError(
        f"the annotation: line {number} of the YOLO text {what}; expected a class number and a box's centre and size, "
        "or corners, as shares of the image"
    )
