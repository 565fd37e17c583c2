"""Aperio ImageScope XML: layers of regions in level-0 pixels from the slide's corner.

The group of a layer is its name, else its description. A region with ``NegativeROA`` is a hole in all regions of its
layer. An ellipse and a rectangle are what their corners' bounding box holds.
"""

from typing import Any

from distmil.annotations.outlines import LINES, OTHERS, Outlines, ellipse, rectangle, to_points
from distmil.annotations.parsing import XmlDocument, decimal
from distmil.annotations.slide_facts import SlideFacts

NAME = "Aperio ImageScope XML"
_ELLIPSE_CORNERS = 8
"""With more corners than these, an ellipse was written as a polygon."""
_OTHERS = {"3": LINES, "4": LINES}
_TOLERANCE = 0.1


def matches(document: XmlDocument) -> bool:
    """Say whether it is ImageScope's: its root is HALO's, too."""
    return document.root == "Annotations" and "V" not in document.tags


def read(document: XmlDocument, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "imagescope"
    if doubt := _resolution_doubt(document.attributes.get("MicronsPerPixel"), slide.mpp):
        outlines.doubts.append(doubt)
    for layer in document.elements("Annotation"):
        group = _group(layer)
        for region in layer.iter("Region"):
            _add(region, group, outlines)


def _group(layer: Any) -> str:
    found = layer.find("Attributes/Attribute[@Name='Description']")
    described = "" if found is None else found.get("Value") or ""
    return (layer.get("Name") or "").strip() or described.strip()


def _add(region: Any, group: str, outlines: Outlines) -> None:
    kind = (region.get("Type") or "0").strip()
    if kind not in {"0", "1", "2"}:
        outlines.drop(_OTHERS.get(kind, OTHERS))
        return
    ring = to_points([(decimal(vertex.get("X")), decimal(vertex.get("Y"))) for vertex in region.iter("Vertex")])
    if kind == "1" and len(ring) == 2:
        ring = rectangle(ring)
    elif kind == "2" and len(ring) <= _ELLIPSE_CORNERS:
        ring = ellipse(ring)
    outlines.add_or_carve(group, ring, is_hole=region.get("NegativeROA") == "1")


def _resolution_doubt(stated: str | None, mpp: float | None) -> str:
    """Say that the outlines may be of another resolution than the slide."""
    try:
        found = float(decimal(stated))
    except ValueError:
        return ""
    if not mpp or not found > 0 or abs(found / mpp - 1) <= _TOLERANCE:
        return ""
    return (
        f"annotation: its file states {found:g} um per pixel and the slide has {mpp:g}; if the outlines are of another "
        f"scan, set labels.scale={found / mpp:.4g}"
    )
