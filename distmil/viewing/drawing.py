"""Outlines that people draw in the viewer: what the page sends, checked, and what the page and the file say of them."""

import json
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shapely

from distmil.annotations.formats import geojson
from distmil.annotations.formats.geojson import ABOUT
from distmil.annotations.outlines import MAX_COORDINATE, Annotation, Outlines
from distmil.annotations.parsing import parse_json
from distmil.annotations.regions import group_key
from distmil.annotations.slide_facts import SlideFacts
from distmil.errors import AnnotationError
from distmil.exporting.frame import Frame
from distmil.exporting.geojson import encode_features, outline_feature

MAX_BYTES = 16 * 2**20
"""Largest drawing that is taken."""
MAX_OUTLINES = 20_000
MAX_POINTS = 300_000
EXCLUDE = "exclude"
"""Name of what is carved out."""
_WITHOUT_MEANING = re.compile(r"\?+[0-9]{1,9}|")
"""Groups of the slide's own annotation that `labels.groups` does not know, and outlines without a class."""
_DECIMALS = 2

Ring = Sequence[Sequence[float]]
"""Points (x, y) in level-0 pixels of the slide, the first again at the end."""


@dataclass(frozen=True)
class Outline:
    """A polygon."""

    name: str
    """Its class; "" = none."""
    rings: Sequence[Ring]
    """The outer ring, then its holes."""


@dataclass(frozen=True)
class Drawing:
    """The outlines of a slide."""

    outlines: Sequence[Outline] = ()
    is_complete: bool = False
    """Every target of the slide is outlined."""
    version: int = 0
    """Of the drawn files; 0: as the manifest's annotation has them."""
    refusal: str = ""
    """Why it cannot be changed in the page; "" where it can."""


def to_page(drawing: Drawing) -> bytes:
    """Write a drawing as the page reads it: GeoJSON in level-0 pixels."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": outline.rings},
            "properties": {"name": outline.name},
        }
        for outline in drawing.outlines
    ]
    about = {"version": drawing.version, "complete": drawing.is_complete, "refusal": drawing.refusal}
    return json.dumps({"type": "FeatureCollection", ABOUT: about, "features": features}).encode()


def from_page(data: bytes, *, classes: Collection[str]) -> Drawing:
    """Read what the page sends.

    Args:
        data: GeoJSON as ``to_page`` writes it.
        classes: Names that an outline may have, beside ``EXCLUDE``.

    Raises:
        AnnotationError: If it is not that, or too much.
    """
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"the outlines take {len(data)} bytes; expected at most {MAX_BYTES}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"the outlines are not JSON ({type(error).__name__})") from error
    about = _member(found, ABOUT, dict)
    features = _member(found, "features", list)
    if len(features) > MAX_OUTLINES:
        raise AnnotationError(f"{len(features)} outlines; expected at most {MAX_OUTLINES}")
    outlines = [_outline(feature, {*classes, EXCLUDE}) for feature in features]
    num_points = sum(len(ring) for outline in outlines for ring in outline.rings)
    if num_points > MAX_POINTS:
        raise AnnotationError(f"the outlines have {num_points} points; expected at most {MAX_POINTS}")
    return Drawing(outlines, _member(about, "complete", bool))


def _outline(feature: Any, names: Collection[str]) -> Outline:
    """Read a feature. Raises: AnnotationError."""
    name = _member(_member(feature, "properties", dict), "name", str)
    if name not in names and not _WITHOUT_MEANING.fullmatch(name):
        raise AnnotationError(f"an outline has the class {name[:40]!r}; expected {', '.join(sorted(names))}")
    geometry = _member(feature, "geometry", dict)
    if geometry.get("type") != "Polygon":
        raise AnnotationError("an outline is no Polygon; other geometries cannot be drawn")
    rings = [_ring(ring) for ring in _member(geometry, "coordinates", list)]
    if not rings:
        raise AnnotationError("an outline has no ring; expected at least the outer one")
    return Outline(name, rings)


def _ring(points: Any) -> Ring:
    """Read a ring, and close it. Raises: AnnotationError."""
    is_list = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not is_list or not all(_is_place(value) for point in points for value in point):
        raise AnnotationError("a point of an outline is not two numbers in level-0 pixels")
    ring = [[round(float(x), _DECIMALS), round(float(y), _DECIMALS)] for x, y in points]
    if len({tuple(point) for point in ring}) < 3:
        raise AnnotationError("an outline has fewer than three corners, and so no area")
    return ring if ring[0] == ring[-1] else [*ring, ring[0]]


def _is_place(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= MAX_COORDINATE  # which NaN is not either


def _member(found: Any, name: str, kind: type) -> Any:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise AnnotationError(f"the outlines are not those of this page: {name!r} is missing or of another kind")
    return value


def to_file(drawing: Drawing, slide_id: str, frame: Frame, *, classes: Sequence[str]) -> bytes:
    """Write a drawing as GeoJSON for this project's reader and for QuPath, which counts from the frame's corner.

    Args:
        drawing: With the version that it will have.
        slide_id: For the ids.
        frame: What QuPath shows of the slide.
        classes: Names of the classes, for their colours.
    """
    features = []
    for i, outline in enumerate(drawing.outlines):
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"distmil/drawn/{slide_id}/{drawing.version}/{i}"))
        features.append(outline_feature(identity, outline.name, outline.rings, frame, classes=classes))
    about = {"corner": [frame.x, frame.y], "complete": drawing.is_complete, "outlines": len(features)}
    return encode_features(features, about=about)


def check_file(data: bytes) -> Annotation:
    """Read a file as labels will read it. Raises: AnnotationError."""
    outlines = Outlines()
    geojson.read(parse_json(data), SlideFacts((int(MAX_COORDINATE), int(MAX_COORDINATE))), outlines)
    return outlines.gathered()


def drawing_of(annotation: Annotation | None, *, groups: Mapping[str, int], classes: Sequence[str]) -> Drawing:
    """Turn a slide's annotation into outlines to start from.

    Groups become the classes that they mean; outlines without any in a file without groups are the target, as labels
    take them. Groups without a meaning stay as they are.

    Args:
        annotation: In level-0 pixels; None where the slide has none.
        groups: Class of each group, below 0 for a carve-out.
        classes: Names of the classes.
    """
    if annotation is None:
        return Drawing()
    if annotation.mask is not None:
        return Drawing(refusal="its annotation is a mask image; only outlines can be drawn on")
    is_loose = set(map(group_key, annotation.regions)) == {""} and len(classes) == 2

    def meant(group: str) -> str:
        value = groups.get(group_key(group), 1 if is_loose else None)
        return group if value is None else (EXCLUDE if value < 0 else classes[value])

    return Drawing(
        [
            Outline(meant(group), [_coordinates(ring) for ring in (part.exterior, *part.interiors)])
            for group, region in annotation.regions.items()
            for part in getattr(region, "geoms", [region])
        ]
    )


def _coordinates(ring: shapely.LinearRing) -> Ring:
    points: Ring = shapely.get_coordinates(ring).round(_DECIMALS).tolist()
    return points


def doubts_of(drawing: Drawing, read: Annotation, *, label: str, classes: Sequence[str]) -> list[str]:
    """Say what the next training will not accept of a drawing, or take otherwise than it looks.

    Args:
        drawing: What was drawn.
        read: How it is read.
        label: The slide's class; "" = unknown.
        classes: Names of the classes, normal first.
    """
    targets = sorted({outline.name for outline in drawing.outlines} & set(classes[1:]))
    doubts = []
    if label == classes[0] and targets:
        doubts.append(
            f"the manifest labels this slide {label}, and training refuses {_listed(targets)} on it: correct its label"
        )
    if label and label != classes[0] and drawing.is_complete and drawing.outlines and not targets:
        doubts.append(
            f"the manifest labels this slide {label}, and training refuses a complete annotation without "
            f"{_listed(classes[1:])}"
        )
    if read.num_repaired:
        doubts.append(f"{read.num_repaired} of the outlines cross themselves; every loop counts as inside")
    return doubts


def _listed(names: Iterable[str]) -> str:
    return " or ".join(names)
