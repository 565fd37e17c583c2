"""GeoJSON: QuPath's, and that of programs that put the class under another property.

The class of a feature is QuPath's ``classification`` (a string, or an object with ``name`` or ``names``). Only where no
feature of the file has one, it is the first of ``CLASS_PROPERTIES`` that any feature has. QuPath's object ``name`` is a
remark wherever the file has any class. A file whose features have other texts only is refused, because what
they say may be the class. An outline that crosses itself encloses every loop it makes (no even-odd holes). Of an
ellipse QuPath writes some corners and ``isEllipse``; its shape is the ellipse in their bounding box.
A collection that distmil's viewer wrote states where its (0, 0) is, under ``ABOUT``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distmil.annotations.outlines import LINES, MAX_DEPTH, OTHERS, POINTS, Outlines, ellipse, to_points
from distmil.annotations.parsing import listed, name_of, plain
from distmil.annotations.slide_facts import SlideFacts
from distmil.errors import AnnotationError

NAME = "GeoJSON"
CLASS_PROPERTIES = ("class", "class_name", "className", "label", "type", "category", "group", "name")
"""Properties that may hold the class, the first that a file has wins."""
ABOUT = "distmil"
"""Member of a collection: ``corner`` is the level-0 (x, y) of the file's (0, 0)."""

_REMARKS = frozenset(
    (
        *("id", "_id", "uuid", "guid", "objectType", "object_type", "classification", "measurements", "metadata"),
        *("childObjects", "parent", "parentId", "color", "colour", "fill", "fillColor", "stroke", "strokeColor"),
        *("description", "comment", "comments", "remark", "notes", "author", "creator", "user", "created"),
        *("created_at", "updated", "updated_at", "modified", "date", "timestamp", "locked", "isLocked", "visible"),
        *("image", "slide", "layer"),
    )
)
"""Properties that are never the class."""
_TYPES = {"detection": "detections", "cell": "cells", "tile": "tiles", "tma_core": "TMA cores", "tmacore": "TMA cores"}
_IDS = {
    "PathDetectionObject": "detections",
    "PathCellObject": "cells",
    "PathTileObject": "tiles",
    "TMACoreObject": "TMA cores",
    "PathRootObject": "root",
    "PathAnnotationObject": "annotation",
}
_WITHOUT_AREA = {"Point": POINTS, "MultiPoint": POINTS, "LineString": LINES, "MultiLineString": LINES}


def matches(value: Any) -> bool:
    """Say whether it is GeoJSON: every GeoJSON object has a ``type``."""
    first = value[0] if isinstance(value, list) and value else value
    return value == [] or (isinstance(first, dict) and "type" in first)


def read(value: Any, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines of a collection, a feature, a list of either, or a bare geometry.

    Raises:
        AnnotationError: If it is not GeoJSON, damaged, or has no property that is known to hold the class.
    """
    about = value.get(ABOUT) if isinstance(value, dict) else None
    if isinstance(about, dict) and "corner" in about:
        x, y = to_points([about["corner"]])[0].tolist()
        outlines.corner = (x, y)
    features = [feature for item in (value if isinstance(value, list) else [value]) for feature in _features(item, 0)]
    if any(feature.is_qupath for feature in features):
        outlines.writer = "qupath"
    key = _class_property([feature for feature in features if feature.kind == "annotation"])
    outlines.class_property = "" if key == "classification" else key
    for feature in features:
        if feature.kind == "annotation":
            _add_geometry(feature.geometry, feature.text(key), outlines, 0)
        elif feature.kind != "root":
            outlines.drop(feature.kind)


@dataclass(frozen=True)
class _Feature:
    """A geometry and its properties."""

    geometry: Any
    properties: Mapping[str, Any]
    identifier: Any = None

    @property
    def kind(self) -> str:
        """Tell QuPath's annotations from its other objects; before 0.3 the id said which it is."""
        for name in ("objectType", "object_type"):
            if name in self.properties:
                return self._named(self.properties[name], default=OTHERS)
        given = self.properties.get("type")
        default = _IDS.get(self.identifier, "annotation") if isinstance(self.identifier, str) else "annotation"
        return self._named(given, default=default)

    @staticmethod
    def _named(given: Any, *, default: str) -> str:
        text = given.casefold() if isinstance(given, str) else ""
        return text if text in {"annotation", "root"} else _TYPES.get(text, default)

    @property
    def is_qupath(self) -> bool:
        """Tell whether QuPath wrote it."""
        is_typed = any(name in self.properties for name in ("objectType", "object_type", "classification"))
        return is_typed or (isinstance(self.identifier, str) and self.identifier in _IDS)

    def text(self, key: str) -> str:
        """Read the class that a property holds, "" if it holds none."""
        value = self.properties.get(key) if key else None
        if isinstance(value, Mapping):
            names = value.get("names") or [value.get("name")]
            value = ": ".join(plain(name) for name in names) if isinstance(names, list) else plain(names)
        text = plain(value)
        is_kind = key == "type" and (text.casefold() in {"annotation", "root", *_TYPES})
        return "" if is_kind else text


def _features(item: Any, depth: int) -> Iterator[_Feature]:
    """Yield the features of an item with those inside them. Raises: AnnotationError."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "FeatureCollection":
        for feature in listed(item, "features", of=NAME):
            yield from _features(feature, depth + 1)
    elif kind == "Feature":
        properties = item.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        yield _Feature(item.get("geometry"), properties, item.get("id"))
        for holder in (item, properties):
            for child in listed(holder, "childObjects", of=NAME) if holder.get("childObjects") is not None else ():
                yield from _features(child, depth + 1)
    elif kind is None:
        raise _no_geojson(item)
    else:
        yield _Feature(item, {})


def _class_property(features: list[_Feature]) -> str:
    """Find the property that holds the class, "" where no feature has one. Raises: AnnotationError."""
    for key in ("classification", *CLASS_PROPERTIES):
        if any(feature.text(key) for feature in features):
            return key
    others = {
        key
        for feature in features
        for key, value in feature.properties.items()
        if key not in _REMARKS and key not in CLASS_PROPERTIES and (isinstance(value, str) and value.strip())
    }
    if others:
        names = ", ".join(repr(key[:40]) for key in sorted(others)[:5])
        raise AnnotationError(
            f"the annotation: no feature has a class, but they have the properties {names}; expected the class under "
            f"classification, or {', '.join(CLASS_PROPERTIES)}: rename the property that holds it"
        )
    return ""


def _add_geometry(geometry: Any, group: str, outlines: Outlines, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    kind = str(geometry.get("type")) if isinstance(geometry, dict) else None
    if kind == "Polygon" and geometry.get("isEllipse") is True:
        corners = [point for ring in listed(geometry, "coordinates", of=NAME) for point in ring]
        outlines.add(group, [ellipse(to_points(corners))])
    elif kind == "Polygon":
        outlines.add(group, [to_points(ring) for ring in listed(geometry, "coordinates", of=NAME)])
    elif kind == "MultiPolygon":
        for rings in listed(geometry, "coordinates", of=NAME):
            _add_geometry({"type": "Polygon", "coordinates": rings}, group, outlines, depth + 1)
    elif kind == "GeometryCollection":
        for part in listed(geometry, "geometries", of=NAME):
            _add_geometry(part, group, outlines, depth + 1)
    elif geometry is None:
        outlines.drop(OTHERS)
    elif kind in _WITHOUT_AREA:
        outlines.drop(_WITHOUT_AREA[kind])
    else:
        raise AnnotationError(
            "the annotation: a geometry is none of GeoJSON's types; expected Polygon, MultiPolygon or "
            "GeometryCollection: export it again"
        )


def _no_geojson(item: Any) -> AnnotationError:
    return AnnotationError(
        f"the annotation: the GeoJSON holds {name_of(item)} instead of a FeatureCollection, Feature or geometry; "
        "export it again"
    )


def _too_deep() -> AnnotationError:
    return AnnotationError(f"the annotation: its GeoJSON is nested more than {MAX_DEPTH} levels deep; export it again")
