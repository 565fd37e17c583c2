"""ASAP XML to outlines, element by element.

Departures from ASAP: the corners of a spline are joined by straight lines; a group inside another group keeps its own
name.
"""

import io
from collections.abc import Iterator
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from distmil.annotations.outlines import LINES, MAX_DEPTH, POINTS, Outlines, convert_hint, to_points
from distmil.errors import AnnotationError

MAX_XML_BYTES = 64 * 2**20
"""Largest XML that is read: a million corners take 60 MB."""

_BLOCK_BYTES = 4 * 2**20
_AREAS = {"polygon", "spline", "rectangle"}
_OTHERS = {"dot": POINTS, "pointset": POINTS, "polyline": LINES, "measurement": LINES}
_HINTS = {
    "annotations": "it looks like Hamamatsu NDPA (nanometres from the slide's centre): convert it to GeoJSON",
    "Annotations": "it looks like Aperio ImageScope XML: convert it to GeoJSON",
    "annotation": convert_hint(
        "Pascal VOC XML", "shapely.box(xmin, ymin, xmax, ymax) for xmin, ymin, xmax, ymax in boxes"
    ),
}


def read_asap(content: bytes, outlines: Outlines) -> None:
    """Gather the outlines of ASAP XML; entities are refused, so that none can grow without end.

    Raises:
        AnnotationError: If it is not ASAP XML, damaged, too large or nested too deeply.
    """
    if len(content) > MAX_XML_BYTES:
        raise AnnotationError(
            f"the annotation: {len(content)} bytes of XML, more than the {MAX_XML_BYTES} that are read; convert it to "
            "GeoJSON, or use a mask image"
        )
    outlines.writer = "asap"
    try:
        for annotation in _annotations(content):
            _add(annotation, outlines)
    except DefusedXmlException as error:
        raise AnnotationError("the annotation: the XML declares entities, which are refused") from error
    except (ParseError, LookupError, ValueError) as error:
        place = getattr(error, "position", None)
        where = f"line {place[0]}, column {place[1]}" if place else type(error).__name__
        raise AnnotationError(f"the annotation: malformed XML ({where}); export it from ASAP again") from error


def _add(annotation: Any, outlines: Outlines) -> None:
    group = (annotation.get("PartOfGroup") or "").strip()
    group = "" if group == "None" else group
    kind = (annotation.get("Type") or "").lower()
    if kind not in _AREAS:
        outlines.drop(_OTHERS.get(kind, "other marks"))
        return
    corners = sorted(enumerate(annotation.iter("Coordinate")), key=_order)
    outlines.add(group, [to_points([(_number(point.get("X")), _number(point.get("Y"))) for _, point in corners])])


def _annotations(content: bytes) -> Iterator[Any]:
    """Yield every Annotation element; elements are freed once they are read."""
    open_elements: list[Any] = []
    for event, element in iterparse(_LargeBlocks(content), events=("start", "end")):
        if event == "start":
            if not open_elements:
                _check_root(element)
            open_elements.append(element)
            if len(open_elements) > MAX_DEPTH:
                raise AnnotationError(f"the annotation: its XML is nested more than {MAX_DEPTH} levels deep")
            continue
        open_elements.pop()
        is_inside = any(parent.tag == "Annotation" for parent in open_elements)
        if element.tag == "Annotation":
            yield element
        if open_elements and not is_inside:
            element.clear()
            open_elements[-1].clear()  # its later children are read all the same, from the parser's own list


class _LargeBlocks(io.BytesIO):
    """Read in blocks of megabytes: the parser starts a text or attribute again with every block."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a block."""
        return super().read(max(size or 0, _BLOCK_BYTES))


def _check_root(element: Any) -> None:
    if element.tag != "ASAP_Annotations":
        hint = _HINTS.get(element.tag, "convert it to GeoJSON")
        raise AnnotationError(
            f"the annotation: the XML starts with <{element.tag[:40]}>, expected <ASAP_Annotations>; {hint}"
        )


def _order(item: tuple[int, Any]) -> float:
    """Find a coordinate's place in its outline: @Order, or where it stands in the file."""
    position, element = item
    text = element.get("Order")
    try:
        return position if text is None else float(text)
    except ValueError:
        raise AnnotationError("the annotation: the Order of a Coordinate is no number; export it again") from None


def _number(text: str | None) -> str:
    """Write a number with a decimal point, whichever country's program wrote it."""
    return (text or "missing").replace(",", ".")
