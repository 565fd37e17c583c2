"""Hamamatsu NDPA: outlines in nanometres from the centre of the glass slide, y down.

A pixel is (nanometres - offset of the image's centre) / nanometres per pixel + half of the image's size; the offset is
in the slide's own file. Source: OpenSlide's property ``hamamatsu.XOffsetFromSlideCentre``, NDP.view's files.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.annotations.outlines import LINES, OTHERS, POINTS, Outlines, ellipse, to_points
from distmil.annotations.parsing import XmlDocument, decimal
from distmil.annotations.slide_facts import ScannerFrame, Size, SlideFacts
from distmil.errors import AnnotationError

NAME = "Hamamatsu NDPA"
_OTHERS = {"pin": POINTS, "pointer": POINTS, "linearmeasure": LINES, "pt": POINTS}
_UNITS_NM = {"nanometers": 1.0, "micrometers": 1e3}


def matches(document: XmlDocument) -> bool:
    """Say whether it is NDPA."""
    return document.root == "annotations"


def read(document: XmlDocument, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "ndpa"
    frame = slide.look_up_scanner()
    for view in document.elements("ndpviewstate"):
        for annotation in view.iter("annotation"):
            kind = (annotation.get("type") or "").casefold()
            if kind == "circle":
                ring = _circle(annotation)
            elif kind == "freehand":
                if not _is_closed(annotation):
                    outlines.drop(LINES)
                    continue
                ring = _points(annotation.iter("point"))
            else:
                outlines.drop(_OTHERS.get(kind, OTHERS))
                continue
            unit_nm = _unit_nm(view.findtext("coordformat"))
            outlines.add((view.findtext("title") or "").strip(), [_pixels(ring * unit_nm, frame, slide.size)])


def _pixels(nm_N2: NDArray[np.float64], frame: ScannerFrame | None, size: Size) -> NDArray[np.float64]:
    """Convert nanometres to level-0 pixels. Raises: AnnotationError if the slide does not state its place."""
    if frame is None:
        raise AnnotationError(
            "the annotation: NDPA counts in nanometres from the centre of the glass, and the slide's file does not "
            "state where its image lies (hamamatsu.XOffsetFromSlideCentre); give the NDPI file as the slide, or "
            "convert the annotation to GeoJSON"
        )
    centre, pixel = np.array(frame.centre_nm), np.array(frame.pixel_nm)
    return np.asarray((nm_N2 - centre) / pixel + np.array(size) / 2)


def _points(elements: Any) -> NDArray[np.float64]:
    return to_points([(decimal(element.findtext("x")), decimal(element.findtext("y"))) for element in elements])


def _circle(annotation: Any) -> NDArray[np.float64]:
    centre, radius = _points([annotation]), decimal(annotation.findtext("radius"))
    reach = to_points([(radius, radius)])
    return ellipse(np.concatenate([centre - reach, centre + reach]))


def _is_closed(annotation: Any) -> bool:
    """Say whether a freehand drawing is an area: it says so, or its name does not call it a line."""
    closed = annotation.findtext("closed")
    if closed is None:
        return "line" not in (annotation.get("displayname") or "").casefold()
    return bool(closed.strip() == "1")


def _unit_nm(text: str | None) -> float:
    """Return the nanometres of a file's unit. Raises: AnnotationError if it is another one."""
    unit = (text or "nanometers").strip().casefold()
    if unit not in _UNITS_NM:
        raise AnnotationError(
            f"the annotation: NDPA in the unit {unit[:20]!r}, expected one of {', '.join(_UNITS_NM)}; export it again"
        )
    return _UNITS_NM[unit]
