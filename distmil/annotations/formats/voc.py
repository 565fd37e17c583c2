"""Pascal VOC XML: boxes and polygons of one plain image.

Coordinates are edges in pixels, as LabelImg, CVAT and others write them. The challenge's own files count pixels from 1
and include the last; their ``database`` names them, and theirs are moved by one pixel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.annotations.outlines import OTHERS, Outlines, rectangle, to_points, to_size
from distmil.annotations.parsing import XmlDocument, decimal
from distmil.annotations.slide_facts import SlideFacts

NAME = "Pascal VOC XML"
_CHALLENGE = "The VOC"


def matches(document: XmlDocument) -> bool:
    """Say whether it is VOC's."""
    return document.root == "annotation"


def read(document: XmlDocument, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "voc"
    first_pixel = 0.0
    for element in document.elements("source", "size", "object"):
        if element.tag == "source":
            first_pixel = float((element.findtext("database") or "").startswith(_CHALLENGE))
        elif element.tag == "size":
            outlines.drawn_on = to_size(element.findtext("width"), element.findtext("height"))
        else:
            _add(element, first_pixel, outlines)


def _add(item: Any, first_pixel: float, outlines: Outlines) -> None:
    group = (item.findtext("name") or "").strip()
    polygon, box = item.find("polygon"), item.find("bndbox")
    if polygon is not None:
        outlines.add(group, [_corners(polygon)])
    elif box is not None:
        ring = rectangle(to_points([(_number(box, f"x{edge}"), _number(box, f"y{edge}")) for edge in ("min", "max")]))
        outlines.add(group, [np.maximum(ring - first_pixel * (ring == ring.min(axis=0)), 0) if first_pixel else ring])
    else:
        outlines.drop(OTHERS)


def _corners(polygon: Any) -> NDArray[np.float64]:
    """Read <pt><x/><y/></pt> or <x1/><y1/><x2/><y2/>."""
    if (points := polygon.findall("pt")) or polygon.find("x1") is None:
        return to_points([(_number(point, "x"), _number(point, "y")) for point in points])
    numbers = sorted(int(child.tag[1:]) for child in polygon if child.tag[:1] == "x" and child.tag[1:].isdigit())
    return to_points([(_number(polygon, f"x{number}"), _number(polygon, f"y{number}")) for number in numbers])


def _number(element: Any, tag: str) -> str:
    return decimal(element.findtext(tag))
