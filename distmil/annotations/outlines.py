"""Outlines of one annotation file, gathered by group: valid areas, and counts of what was repaired or left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from distmil.annotations.coverage import polygonal, united
from distmil.annotations.slide_facts import Size
from distmil.errors import AnnotationError

MAX_COORDINATE = 2.0**31
MAX_CROSSINGS = 200_000
"""Most places where an outline may cross itself: repairing as many takes two seconds; drawn outlines have a few."""
MAX_DEPTH = 100
"""Most levels of features in features, or of elements in elements."""

NO_AREA = "outlines without an area"
LINES, POINTS, OTHERS = "lines", "points", "other marks"
CARVED, LOOSE_HOLES = "carved-out outlines", "holes without an outline"
_KINDS = {
    LINES: "line",
    POINTS: "point",
    NO_AREA: "outline without an area",
    "detections": "detection",
    "cells": "cell",
    "tiles": "tile",
    "TMA cores": "TMA core",
    OTHERS: "other mark",
    CARVED: "carved-out outline",
    LOOSE_HOLES: "hole without an outline",
}
_OBJECTS = {"detections", "cells", "tiles", "TMA cores", OTHERS}
_CORNERS = 360
"""Corners of an ellipse, which lose a 20,000th of its area."""
_SAMPLED_EDGES = 64
_INDEX = "class index "


@dataclass(frozen=True)
class Annotation:
    """The marks of a file: outlines by group, or a mask."""

    regions: Mapping[str, BaseGeometry]
    """Group -> valid (Multi)Polygon in level-0 pixels, holes kept; "" holds the outlines without a group."""
    mask: NDArray[np.uint8] | None = None
    """Values of a mask image, height x width, 0 = not marked."""
    mask_scale: tuple[float, float] = (1.0, 1.0)
    """Level-0 pixels per mask pixel, (x, y)."""
    num_repaired: int = 0
    """Outlines that crossed or touched themselves and were made valid."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Kind -> number of the marks that were left out: lines, points, detections, cells, tiles."""
    writer: str = ""
    """Program that wrote the file, such as ``qupath`` or ``asap``, "" = unknown."""
    class_property: str = ""
    """GeoJSON property that the groups were read from, "" where that is the one that QuPath writes."""
    corner: tuple[float, float] | None = None
    """Level-0 place of the file's (0, 0) as the file itself states it, None where it does not."""
    mask_corner: tuple[float, float] = (0.0, 0.0)
    """Where the mask's corner is in level-0 pixels."""
    drawn_on: Size | None = None
    """Size of the image that the outlines were drawn on, where the file states it."""
    doubts: tuple[str, ...] = ()
    """What a person should know of how the file was read."""

    @property
    def num_dropped(self) -> int:
        """Number of marks that were left out."""
        return sum(self.dropped.values())

    @property
    def dropped_text(self) -> str:
        """Say which marks were left out and why, "" if none was."""
        if not self.num_dropped:
            return ""
        counts = [f"{num} {kind if num != 1 else _KINDS.get(kind, kind)}" for kind, num in self.dropped.items() if num]
        named = f"{', '.join(counts[:-1])} and {counts[-1]}" if len(counts) > 1 else counts[0]
        reasons = []
        if any(self.dropped.get(kind) for kind in (LINES, POINTS)):
            reasons.append("lines and points have no area")
        if set(self.dropped) & _OBJECTS:
            reasons.append("only objects of the type annotation count")
        why = f" ({'; '.join(reasons)})" if reasons else ""
        return f"{named} {'were' if self.num_dropped > 1 else 'was'} left out{why}"


class Outlines:
    """Gathers the outlines of a file by group, repairing and counting."""

    def __init__(self) -> None:
        self.writer = ""
        self.class_property = ""
        self.corner: tuple[float, float] | None = None
        self.drawn_on: Size | None = None
        self.doubts: list[str] = []
        self._parts: dict[str, list[BaseGeometry]] = {}
        self._holes: dict[str, list[BaseGeometry]] = {}
        self._num_repaired = 0
        self._dropped: Counter[str] = Counter()

    def add(self, group: str, rings: Sequence[NDArray[np.float64]]) -> None:
        """Add one polygon: its outer ring, then its holes, each N x 2. Raises: AnnotationError."""
        polygon = self._valid(rings)
        if polygon is not None:
            self._parts.setdefault(group, []).append(polygon)

    def add_even_odd(self, group: str, rings: Sequence[NDArray[np.float64]]) -> None:
        """Add the area that an odd number of the rings encloses. Raises: AnnotationError."""
        found = [polygon for ring in rings if (polygon := self._valid([ring])) is not None]
        self.add_area(
            group,
            polygonal(reduce(shapely.symmetric_difference, found, shapely.Polygon())),
            is_new=bool(found) or not rings,
        )

    def add_area(self, group: str, area: BaseGeometry, *, is_new: bool = True) -> None:
        """Add a valid area; an empty one is dropped, and counted unless it was counted before."""
        if area.area > 0:
            self._parts.setdefault(group, []).append(area)
        elif is_new:
            self.drop(NO_AREA)

    def add_or_carve(self, group: str, ring: NDArray[np.float64], *, is_hole: bool) -> None:
        """Add what a ring encloses, or take it out of all outlines of its group. Raises: AnnotationError."""
        polygon = self._valid([ring])
        if polygon is not None:
            (self._holes if is_hole else self._parts).setdefault(group, []).append(polygon)

    def drop(self, kind: str) -> None:
        """Count a mark that encloses nothing or is not an annotation."""
        self._dropped[kind] += 1

    def gathered(self) -> Annotation:
        """Unite the areas of each group, without what is carved out of it."""
        regions = {group: united(parts) for group, parts in self._parts.items()}
        for group, holes in self._holes.items():
            if group not in regions:
                self._dropped[LOOSE_HOLES] += len(holes)
                continue
            regions[group] = polygonal(shapely.difference(regions[group], united(holes)))
            if regions[group].area == 0:
                del regions[group]
                self._dropped[CARVED] += len(self._parts[group])
        return Annotation(
            regions,
            num_repaired=self._num_repaired,
            dropped=dict(self._dropped),
            writer=self.writer,
            class_property=self.class_property,
            corner=self.corner,
            drawn_on=self.drawn_on,
            doubts=tuple(self.doubts),
        )

    def _valid(self, rings: Sequence[NDArray[np.float64]]) -> BaseGeometry | None:
        """Make one polygon valid, None if it has no area. Raises: AnnotationError."""
        shell, *holes = rings if len(rings) else [np.empty((0, 2))]
        if _num_distinct(shell) < 3:
            self.drop(NO_AREA)
            return None
        polygon = shapely.Polygon(shell, [hole for hole in holes if _num_distinct(hole) >= 3])
        is_valid = polygon.is_valid
        if not is_valid:
            _check_crossings(polygon)
            polygon = polygonal(shapely.make_valid(polygon, method="structure", keep_collapsed=False))
        if polygon.area == 0:
            self.drop(NO_AREA)
            return None
        self._num_repaired += not is_valid
        return polygon


def rectangle(point_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners of the box around points."""
    if not len(point_N2):
        return point_N2
    (left, top), (right, bottom) = point_N2.min(axis=0), point_N2.max(axis=0)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(point_N2: NDArray[np.float64], *, turn: float = 0.0) -> NDArray[np.float64]:
    """Return the corners of the ellipse in the box around points, turned around its centre by radians."""
    if not len(point_N2):
        return point_N2
    low, high = point_N2.min(axis=0), point_N2.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    x, y = np.cos(angle) * (high - low)[0] / 2, np.sin(angle) * (high - low)[1] / 2
    turned = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    return np.asarray((low + high) / 2 + turned)


def index_group(index: int) -> str:
    """Name the group of what a file marks by the index of a class."""
    return f"{_INDEX}{index}"


def is_index_group(name: str) -> bool:
    """Say whether ``index_group`` made a name."""
    return name.startswith(_INDEX)


def to_points(values: Sequence[Any]) -> NDArray[np.float64]:
    """Convert coordinates to N x 2. Raises: AnnotationError if a value is not a level-0 pixel."""
    try:
        point_N2 = np.array([(float(x), float(y)) for x, y, *_ in values], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise _no_coordinate("not two numbers") from None
    wrong = point_N2[~(np.abs(point_N2) <= MAX_COORDINATE)]
    if len(wrong):
        raise _no_coordinate(f"value {wrong[0]}")
    return point_N2


def to_size(width: Any, height: Any) -> Size | None:
    """Convert the size of an image, numbers or texts, to pixels; None where it is none."""
    texts = [str(edge).strip() for edge in (width, height)]
    if not all(text.isascii() and text.isdigit() and len(text) < 10 and int(text) for text in texts):
        return None
    return int(texts[0]), int(texts[1])


def _no_coordinate(found: str) -> AnnotationError:
    return AnnotationError(
        f"the annotation: a coordinate of an outline is no level-0 pixel ({found}); expected two finite numbers per "
        "point: export the annotation again"
    )


def _num_distinct(point_N2: NDArray[np.float64]) -> int:
    return len(np.unique(point_N2, axis=0))


def _check_crossings(polygon: shapely.Polygon) -> None:
    """Refuse rings whose repair would take minutes and gigabytes: their crossings are estimated from some edges."""
    total = 0.0
    for ring in (polygon.exterior, *polygon.interiors):
        point_N2 = np.asarray(ring.coords)[:, :2]
        num = len(point_N2) - 1
        if num < 600:  # at most 180,000 crossings
            continue
        chosen = np.linspace(0, num - 1, _SAMPLED_EDGES).astype(np.intp)
        start_E2, end_E2 = point_N2[:-1], point_N2[1:]
        crossed = sum(_num_crossed(start_E2[i], end_E2[i], start_E2, end_E2) for i in chosen)
        total += crossed * num / len(chosen) / 2
    if total > MAX_CROSSINGS:
        raise AnnotationError(
            f"the annotation: an outline of {shapely.get_num_coordinates(polygon)} corners crosses itself about "
            f"{total:.0e} times, more than {MAX_CROSSINGS:.0e}; draw it again, or use a mask image"
        )


def _num_crossed(
    start: NDArray[np.float64], end: NDArray[np.float64], start_E2: NDArray[np.float64], end_E2: NDArray[np.float64]
) -> int:
    """Count the edges that properly cross one edge."""

    def side(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1])
        return value - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    is_split = side(start, end, start_E2) * side(start, end, end_E2) < 0
    return int((is_split & (side(start_E2, end_E2, start) * side(start_E2, end_E2, end) < 0)).sum())
