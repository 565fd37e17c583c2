"""The JSON of CAMELYON16's outlines: ``positive`` are lesions, ``negative`` are carved out of them.

The groups are named as in the ASAP XML of the same slides, ``Tumor`` and ``_2``; the outlines' own names are numbers.
"""

from typing import Any

from distmil.annotations.outlines import OTHERS, Outlines, to_points
from distmil.annotations.parsing import listed
from distmil.annotations.slide_facts import SlideFacts

NAME = "CAMELYON JSON"
_GROUPS = {"positive": "Tumor", "negative": "_2"}


def matches(value: Any) -> bool:
    """Say whether it is a pair of lists of outlines."""
    return isinstance(value, dict) and "positive" in value and set(value) <= set(_GROUPS)


def read(value: Any, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "camelyon"
    for key in value:
        for outline in listed(value, key, of=NAME):
            if isinstance(outline, dict):
                outlines.add(_GROUPS[key], [to_points(listed(outline, "vertices", of=NAME))])
            else:
                outlines.drop(OTHERS)
