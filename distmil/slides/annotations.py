"""What people marked on a slide: outlines from ASAP XML or QuPath GeoJSON, or a mask image, in level-0 pixels.

A file is told by its content, not by its extension. Departures from the programs that write them: the corners of an
ASAP spline are joined by straight lines; an ASAP group inside another group keeps its own name; QuPath's object *name*
is a remark, not a class; a line that crosses itself encloses every loop it makes (no even-odd holes).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from distmil.errors import AnnotationError
from distmil.slides.coverage import polygonal, united
from distmil.slides.masks import read_mask

SUPPORTED = "ASAP XML, QuPath GeoJSON and mask images (PNG, TIFF)"
MAX_FILE_BYTES = 256 * 2**20
"""Largest XML or GeoJSON file that is read."""
MAX_COORDINATE = 2.0**31

_IMAGES = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_ASAP_AREAS = {"polygon", "spline", "rectangle"}
_WITHOUT_AREA = {"Point", "MultiPoint", "LineString", "MultiLineString"}
_QUPATH_OTHERS = {"PathDetectionObject", "PathCellObject", "PathTileObject", "PathRootObject", "TMACoreObject"}
_XML_HINTS = {
    "annotations": "it looks like Hamamatsu NDPA (nanometres from the slide's centre): convert it to GeoJSON",
    "Annotations": "it looks like Aperio ImageScope XML: convert it to GeoJSON",
}
_JSON_HINTS = {
    "schema_ref": "it looks like Darwin V7 JSON: convert its polygons to GeoJSON",
    "positive": "it looks like a CAMELYON16 JSON list: use the ASAP XML of the same slide",
}


@dataclass(frozen=True)
class Annotation:
    """What a file marks: outlines by group, or a mask."""

    regions: Mapping[str, BaseGeometry]
    """Group -> valid (Multi)Polygon in level-0 pixels, holes kept; "" holds what belongs to no group."""
    mask: NDArray[np.uint8] | None = None
    """Values of a mask image, height x width, 0 = not marked."""
    mask_scale: tuple[float, float] = (1.0, 1.0)
    """Level-0 pixels per mask pixel, (x, y)."""
    num_repaired: int = 0
    """Outlines that crossed or touched themselves and were made valid."""
    num_dropped: int = 0
    """Marks without an area, and objects that are no annotations (detections, cells, tiles)."""


def read_annotation(path: Path, *, slide_size: tuple[int, int]) -> Annotation:
    """Read one annotation file.

    Args:
        path: The file; only its name appears in messages.
        slide_size: Level-0 size of the slide, (width, height).

    Raises:
        AnnotationError: If the file cannot be read as one of the supported formats.
    """
    try:
        head = _read_head(path)
        if head.startswith(_IMAGES):
            mask, scale = read_mask(path, slide_size=slide_size)
            return Annotation({}, mask=mask, mask_scale=scale)
        outlines = _Outlines(path.name)
        if _first_character(head) == b"<":
            _read_asap(path, outlines)
        elif _first_character(head) in {b"{", b"["}:
            _read_geojson(path, outlines)
        else:
            raise AnnotationError(f"{path.name}: neither XML, JSON, PNG nor TIFF; supported are {SUPPORTED}")
    except OSError as error:
        raise AnnotationError(f"{path.name}: the annotation cannot be opened ({error.strerror})") from error
    return outlines.gathered()


class _Outlines:
    """Gathers the outlines of a file by group, repairing and counting."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._parts: dict[str, list[BaseGeometry]] = {}
        self._num_repaired = 0
        self._num_dropped = 0

    def add(self, group: str, rings: Sequence[NDArray[np.float64]]) -> None:
        """Add one polygon: its outer ring, then its holes, each N x 2."""
        shell, *holes = rings if len(rings) else [np.empty((0, 2))]
        if _num_distinct(shell) < 3:
            self.drop()
            return
        polygon = shapely.Polygon(shell, [hole for hole in holes if _num_distinct(hole) >= 3])
        is_valid = polygon.is_valid
        if not is_valid:
            polygon = polygonal(shapely.make_valid(polygon, method="structure", keep_collapsed=False))
        if polygon.area == 0:
            self.drop()
            return
        self._num_repaired += not is_valid
        self._parts.setdefault(group, []).append(polygon)

    def drop(self) -> None:
        """Count a mark that encloses nothing or is no annotation."""
        self._num_dropped += 1

    def points(self, values: Sequence[Any], *, group: str) -> NDArray[np.float64]:
        """Return coordinates as N x 2, or say which value is none."""
        try:
            point_N2 = np.array([(float(x), float(y)) for x, y, *_ in values], dtype=np.float64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._no_coordinate(str(error), group) from None
        wrong = point_N2[~(np.abs(point_N2) <= MAX_COORDINATE)]
        if len(wrong):
            raise self._no_coordinate(f"value {wrong[0]}", group)
        return point_N2

    def _no_coordinate(self, what: str, group: str) -> AnnotationError:
        return AnnotationError(
            f"{self.name}: a coordinate of an outline in group {group!r} is no level-0 pixel ({what}); expected two "
            "finite numbers per point: export the annotation again"
        )

    def gathered(self) -> Annotation:
        """Return the union of each group."""
        regions = {group: united(parts) for group, parts in self._parts.items()}
        return Annotation(regions, num_repaired=self._num_repaired, num_dropped=self._num_dropped)


def _read_asap(path: Path, outlines: _Outlines) -> None:
    """Read ASAP XML element by element; entities are refused, so that none can grow without end."""
    try:
        with path.open("rb") as file:
            for annotation in _asap_annotations(file, path.name):
                _add_asap(annotation, outlines)
    except DefusedXmlException as error:
        raise AnnotationError(f"{path.name}: the XML declares entities, which are refused ({error})") from error
    except (ParseError, LookupError, ValueError) as error:
        raise AnnotationError(f"{path.name}: malformed XML ({error}); export the annotation from ASAP again") from error


def _add_asap(annotation: Any, outlines: _Outlines) -> None:
    group = (annotation.get("PartOfGroup") or "").strip()
    group = "" if group == "None" else group
    if (annotation.get("Type") or "").lower() not in _ASAP_AREAS:
        outlines.drop()
        return
    corners = sorted(enumerate(annotation.iter("Coordinate")), key=lambda item: _order(item, outlines.name))
    values = [(_number(point.get("X")), _number(point.get("Y"))) for _, point in corners]
    outlines.add(group, [outlines.points(values, group=group)])


def _asap_annotations(file: BinaryIO, name: str) -> Iterator[Any]:
    """Yield every Annotation element of an ASAP file and empty it afterwards."""
    depth = 0
    for event, element in iterparse(file, events=("start", "end")):
        depth += 1 if event == "start" else -1
        if event == "start" and depth == 1 and element.tag != "ASAP_Annotations":
            hint = _XML_HINTS.get(element.tag, "convert it to GeoJSON")
            raise AnnotationError(
                f"{name}: the XML starts with <{element.tag}>, expected <ASAP_Annotations>; {hint} "
                f"(supported are {SUPPORTED})"
            )
        if event == "end" and element.tag == "Annotation":
            yield element
            element.clear()


def _order(item: tuple[int, Any], name: str) -> float:
    """Return a coordinate's place in its outline: @Order, or where it stands in the file."""
    position, element = item
    text = element.get("Order")
    try:
        return position if text is None else float(text)
    except ValueError:
        raise AnnotationError(f"{name}: Order={text!r} of a Coordinate is no number; export it again") from None


def _number(text: str | None) -> str:
    """Return a number's text with a decimal point, whichever country's program wrote it."""
    return (text or "missing").replace(",", ".")


def _read_geojson(path: Path, outlines: _Outlines) -> None:
    """Read GeoJSON: a collection, a feature, a list of either, or a bare geometry."""
    try:
        content = json.loads(path.read_bytes())
        items = content if isinstance(content, list) else [content]
        for item in items:
            _add_item(item, outlines)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path.name}: malformed JSON ({error}); export the GeoJSON again") from error


def _add_item(item: Any, outlines: _Outlines) -> None:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "FeatureCollection":
        for feature in _listed(item, "features", outlines):
            _add_item(feature, outlines)
    elif kind == "Feature":
        properties = item.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        if _is_annotation(item, properties):
            _add_geometry(item.get("geometry"), _group(properties), outlines)
        else:
            outlines.drop()
    elif kind is None:
        keys = list(item) if isinstance(item, dict) else []
        hint = next((_JSON_HINTS[key] for key in keys if key in _JSON_HINTS), "export it as GeoJSON")
        shown = f"an object with {', '.join(map(repr, keys[:5]))}" if keys else f"{str(item)[:40]!r}"
        raise AnnotationError(
            f"{outlines.name}: the JSON is no GeoJSON: {shown} instead of a FeatureCollection, Feature or geometry; "
            f"{hint} (supported are {SUPPORTED})"
        )
    else:
        _add_geometry(item, "", outlines)


def _is_annotation(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    """Tell QuPath's annotations from its detections, cells, tiles and cores; before 0.3 the id said which it is."""
    kind = properties.get("objectType", properties.get("object_type"))
    return str(feature.get("id")) not in _QUPATH_OTHERS if kind is None else kind == "annotation"


def _group(properties: Mapping[str, Any]) -> str:
    """Return a feature's class as QuPath shows it, "" where it has none."""
    classification = properties.get("classification")
    if isinstance(classification, Mapping):
        names = classification.get("names") or [classification.get("name") or ""]
        return ": ".join(map(str, names)).strip()
    return str(classification or "").strip()


def _add_geometry(geometry: Any, group: str, outlines: _Outlines) -> None:
    kind = str(geometry.get("type")) if isinstance(geometry, dict) else None
    if kind == "Polygon":
        rings = _listed(geometry, "coordinates", outlines)
        outlines.add(group, [outlines.points(ring, group=group) for ring in rings])
    elif kind == "MultiPolygon":
        for rings in _listed(geometry, "coordinates", outlines):
            _add_geometry({"type": "Polygon", "coordinates": rings}, group, outlines)
    elif kind == "GeometryCollection":
        for part in _listed(geometry, "geometries", outlines):
            _add_geometry(part, group, outlines)
    elif geometry is None or kind in _WITHOUT_AREA:
        outlines.drop()
    else:
        raise AnnotationError(
            f"{outlines.name}: geometry type {kind!r} is no GeoJSON geometry; expected Polygon, MultiPolygon or "
            "GeometryCollection: export it again"
        )


def _listed(item: Mapping[str, Any], key: str, outlines: _Outlines) -> list[Any]:
    value = item.get(key)
    if not isinstance(value, list):
        raise AnnotationError(
            f"{outlines.name}: {key!r} of a {item['type']} is {str(value)[:40]!r}, expected a list; export it again"
        )
    return value


def _read_head(path: Path) -> bytes:
    """Return the start of the file, refusing one that is empty or too large to be outlines."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.strip():
        raise AnnotationError(f"{path.name}: the annotation file is empty; export it again or leave it out")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES and not head.startswith(_IMAGES):
        raise AnnotationError(
            f"{path.name}: {size} bytes, more than the {MAX_FILE_BYTES} that are read; export the annotations alone, "
            "without detections and cells, or use a mask image"
        )
    return head


def _first_character(head: bytes) -> bytes:
    for mark in _BYTE_ORDER_MARKS:
        head = head.removeprefix(mark)
    return head.replace(b"\0", b"").lstrip()[:1]


def _num_distinct(point_N2: NDArray[np.float64]) -> int:
    return len(np.unique(point_N2, axis=0))
