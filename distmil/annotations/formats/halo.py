"""HALO's .annotations XML: layers of regions in level-0 pixels from the slide's corner.

A region with ``NegativeROA`` is a hole in all regions of its layer.
"""

from typing import Any

from distmil.annotations.outlines import LINES, OTHERS, POINTS, Outlines, ellipse, rectangle, to_points
from distmil.annotations.parsing import XmlDocument, decimal
from distmil.annotations.slide_facts import SlideFacts

NAME = "HALO XML"
_SHAPES = {"polygon": lambda point_N2: point_N2, "rectangle": rectangle, "ellipse": ellipse}
_OTHERS = {"pin": POINTS, "ruler": LINES}


def matches(document: XmlDocument) -> bool:
    """Say whether it is HALO's: it shares its root with ImageScope's, and its corners are <V>."""
    return document.root == "Annotations" and "V" in document.tags


def read(document: XmlDocument, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "halo"
    for layer in document.elements("Annotation"):
        group = (layer.get("Name") or "").strip()
        for region in layer.iter("Region"):
            _add(region, group, outlines)


def _add(region: Any, group: str, outlines: Outlines) -> None:
    kind = (region.get("Type") or "polygon").casefold()
    if kind not in _SHAPES:
        outlines.drop(_OTHERS.get(kind, OTHERS))
        return
    corners = to_points([(decimal(v.get("X")), decimal(v.get("Y"))) for v in region.iter("V")])
    outlines.add_or_carve(group, _SHAPES[kind](corners), is_hole=region.get("NegativeROA") == "1")
