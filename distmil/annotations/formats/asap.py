"""ASAP XML.

Departures from ASAP: the corners of a spline are joined by straight lines; a group inside another group keeps its own
name.
"""

from typing import Any

from distmil.annotations.outlines import LINES, OTHERS, POINTS, Outlines, to_points
from distmil.annotations.parsing import XmlDocument, decimal
from distmil.annotations.slide_facts import SlideFacts
from distmil.errors import AnnotationError

NAME = "ASAP XML"
_AREAS = {"polygon", "spline", "rectangle"}
_OTHERS = {"dot": POINTS, "pointset": POINTS, "polyline": LINES, "measurement": LINES}


def matches(document: XmlDocument) -> bool:
    """Say whether it is ASAP XML."""
    return document.root == "ASAP_Annotations"


def read(document: XmlDocument, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "asap"
    for annotation in document.elements("Annotation"):
        group = (annotation.get("PartOfGroup") or "").strip()
        kind = (annotation.get("Type") or "").lower()
        if kind not in _AREAS:
            outlines.drop(_OTHERS.get(kind, OTHERS))
            continue
        corners = sorted(enumerate(annotation.iter("Coordinate")), key=_order)
        points = [(decimal(point.get("X")), decimal(point.get("Y"))) for _, point in corners]
        outlines.add("" if group == "None" else group, [to_points(points)])


def _order(item: tuple[int, Any]) -> float:
    """Find a coordinate's place in its outline: @Order, or where it stands in the file."""
    position, element = item
    text = element.get("Order")
    try:
        return position if text is None else float(text)
    except ValueError:
        raise AnnotationError("the annotation: the Order of a Coordinate is no number; export it again") from None
