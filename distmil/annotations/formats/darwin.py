"""Darwin V7 JSON, version 1 and 2.

Of a complex polygon, what an odd number of its paths encloses is inside. The box beside a polygon is not read; alone it
is an outline. Source: darwin-py and its public schema.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmil.annotations.outlines import LINES, OTHERS, POINTS, Outlines, ellipse, rectangle, to_points, to_size
from distmil.annotations.parsing import listed, plain
from distmil.annotations.slide_facts import Size, SlideFacts

NAME = "Darwin V7 JSON"
_OTHERS = {"keypoint": POINTS, "line": LINES, "skeleton": POINTS, "tag": "slide tags", "mask": "masks"}


def matches(value: Any) -> bool:
    """Say whether it is Darwin's."""
    if not isinstance(value, dict):
        return False
    return "schema_ref" in value or ("annotations" in value and bool({"item", "image"} & set(value)))


def read(value: Any, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines. Raises: AnnotationError."""
    outlines.writer = "darwin"
    outlines.drawn_on = _size(value)
    for annotation in listed(value, "annotations", of=NAME):
        if isinstance(annotation, dict):
            _add(annotation, plain(annotation.get("name")), outlines)
        else:
            outlines.drop(OTHERS)


def _add(annotation: Mapping[str, Any], group: str, outlines: Outlines) -> None:
    polygon, box, oval = (annotation.get(key) for key in ("polygon", "bounding_box", "ellipse"))
    if isinstance(polygon, dict):
        outlines.add_even_odd(group, [_points(path) for path in _paths(polygon)])
    elif isinstance(oval, dict):
        outlines.add(group, [_ellipse(oval)])
    elif isinstance(box, dict) and not any(key in annotation for key in _OTHERS):
        outlines.add(group, [rectangle(_corners(box))])
    else:
        outlines.drop(next((kind for key, kind in _OTHERS.items() if key in annotation), OTHERS))


def _paths(polygon: Mapping[str, Any]) -> Sequence[Any]:
    if "paths" in polygon:
        return listed(polygon, "paths", of=NAME)
    more = polygon.get("additional_paths")
    return [listed(polygon, "path", of=NAME), *(more if isinstance(more, list) else ())]


def _points(path: Any) -> NDArray[np.float64]:
    points = path if isinstance(path, list) else [path]
    return to_points([(p.get("x"), p.get("y")) if isinstance(p, dict) else (p, None) for p in points])


def _corners(box: Mapping[str, Any]) -> NDArray[np.float64]:
    corner, size = to_points([(box.get("x"), box.get("y")), (box.get("w"), box.get("h"))])
    return np.stack([corner, corner + size])


def _ellipse(oval: Mapping[str, Any]) -> NDArray[np.float64]:
    centre, radius = _points([oval.get("center"), oval.get("radius")])
    turn = to_points([(oval.get("angle") or 0, 0)])[0, 0]
    return ellipse(np.stack([centre - radius, centre + radius]), turn=float(turn))


def _size(value: Mapping[str, Any]) -> Size | None:
    """Find the size of the image that was drawn on."""
    item = value.get("item")
    slots = item.get("slots") if isinstance(item, dict) else None
    stated = slots[0] if isinstance(slots, list) and slots else value.get("image")
    return to_size(stated.get("width"), stated.get("height")) if isinstance(stated, dict) else None
