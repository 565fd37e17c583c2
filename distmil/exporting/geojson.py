"""Regions and patches as GeoJSON that QuPath imports.

Source: QuPath's QuPathTypeAdapters, ROITypeAdapters and GsonTools. An id that is no UUID is ignored, a classification
that is an object without colour is an error, coordinates have two decimals, y points down, and (0, 0) is the corner of
what QuPath shows. Measurement maps need objects of the type tile or detection.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from distmil.annotations.formats.geojson import ABOUT
from distmil.exporting.frame import Frame
from distmil.exporting.regions import Region, has_area, patch_boxes, patch_id
from distmil.exporting.scores import ScoredPatches

SUFFIX, PACKED = ".geojson", ".geojson.gz"
MAX_PLAIN_BYTES = 2**20
"""A larger file is packed by gzip, which QuPath unpacks."""
PREFIX = "distmil: "
"""Of the names of measurements."""
_COLOURS = ((200, 0, 0), (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0))
"""Of the classes in their order; after red those of Okabe and Ito, which colour-blind eyes tell apart."""
_GREY = (120, 120, 120)
"""Of what is no class."""

Feature = dict[str, Any]


def region_features(
    regions: Iterable[Region], frame: Frame, *, names: Sequence[str], classes: Sequence[str]
) -> Iterator[Feature]:
    """Write each region as an annotation with its measurements: area, patches, mean and top scores.

    Args:
        regions: In level-0 pixels of the slide.
        frame: Its corner becomes (0, 0).
        names: The scores.
        classes: Names of the classes, for their colours.
    """
    for region in regions:
        measurements: dict[str, float] = {}
        if region.area_mm2 is not None:
            measurements[f"{PREFIX}area mm2"] = float(f"{region.area_mm2:.8g}")
        measurements[f"{PREFIX}patches"] = region.num_patches
        for word, values in (("mean", region.mean), ("top", region.top)):
            measurements |= {f"{PREFIX}{name} {word}": round(values[name], 6) for name in names}
        properties = {
            "objectType": "annotation",
            "classification": _classification(region.name, classes),
            "measurements": measurements,
        }
        rings = (region.polygon.exterior, *region.polygon.interiors)
        yield _feature(region.region_id, [_points(ring, frame) for ring in rings], properties)


def patch_features(
    slide_id: str, patches: ScoredPatches, frame: Frame, *, names: Sequence[str], threshold: float
) -> Iterator[Feature]:
    """Write each patch inside the frame as a tile with its scores; abnormal ones have their class.

    Args:
        slide_id: For the ids.
        patches: In level-0 pixels of the slide.
        frame: Its corner becomes (0, 0).
        names: The scores.
        threshold: Probability from which a patch is abnormal.
    """
    box_N4 = patch_boxes(patches, frame)
    corner_N4 = (box_N4 - np.array([frame.x, frame.y, frame.x, frame.y])).tolist()
    is_abnormal, is_inside = patches.is_abnormal(threshold).tolist(), has_area(box_N4).tolist()
    texts = {name: patches.scores[name].astype(str).tolist() for name in names}  # the shortest that are exact
    for i, (left, top, right, bottom) in enumerate(corner_N4):
        if not is_inside[i]:
            continue
        properties: dict[str, Any] = {"objectType": "tile"}
        if is_abnormal[i]:
            properties["classification"] = _classification(patches.classes[patches.class_N[i]], patches.classes)
        properties["measurements"] = {PREFIX + name: float(values[i]) for name, values in texts.items()}
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        yield _feature(patch_id(slide_id, patches, i, name="patch"), [ring], properties)


def outline_feature(
    identity: str, name: str, rings: Sequence[Sequence[Sequence[float]]], frame: Frame, *, classes: Sequence[str]
) -> Feature:
    """Write an outline that a person drew as an annotation.

    Args:
        identity: A UUID.
        name: Its class, "" = none.
        rings: The outer ring, then its holes: closed, (x, y) in level-0 pixels of the slide.
        frame: Its corner becomes (0, 0).
        classes: Names of the classes, for their colours.
    """
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name:
        properties["classification"] = _classification(name, classes)
    moved = [[[round(x - frame.x, 2), round(y - frame.y, 2)] for x, y in ring] for ring in rings]
    return _feature(identity, moved, properties)


def encode_features(features: Iterable[Feature], *, about: Mapping[str, Any] | None = None) -> bytes:
    """Encode features as one collection, a line each: the same bytes for the same features.

    Args:
        features: The features.
        about: What the collection says of itself on its first line; other programs pass over it.
    """
    lines = ",\n".join(json.dumps(feature, separators=(",", ":"), allow_nan=False) for feature in features)
    said = "" if about is None else f'"{ABOUT}":{json.dumps(about, separators=(",", ":"), allow_nan=False)},'
    return f'{{"type":"FeatureCollection",{said}"features":[\n{lines}\n]}}\n'.encode()


def pack(data: bytes) -> bytes:
    """Pack a file by gzip, without the time: the same bytes for the same content."""
    return gzip.compress(data, compresslevel=6, mtime=0)


def _feature(identity: str, rings: list[Any], properties: dict[str, Any]) -> Feature:
    geometry = {"type": "Polygon", "coordinates": rings}
    return {"type": "Feature", "id": identity, "geometry": geometry, "properties": properties}


def _classification(name: str, classes: Sequence[str]) -> dict[str, Any]:
    colour = _COLOURS[classes.index(name) % len(_COLOURS)] if name in classes else _GREY
    return {"name": name, "color": list(colour)}


def _points(ring: shapely.LinearRing, frame: Frame) -> list[list[float]]:
    """List a ring's corners; they are whole pixels, and so have no decimals."""
    point_N2 = np.rint(shapely.get_coordinates(ring)).astype(np.int64) - (frame.x, frame.y)
    points: list[list[float]] = point_N2.tolist()
    return points
