"""GeoJSON read again: by a reader that knows QuPath's rules and nothing else, by distmil's own, and by shapely."""

import gzip
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from distmil.annotations.origin import place
from distmil.annotations.reader import read_annotation
from distmil.exporting import geojson
from distmil.exporting.frame import frame_of
from distmil.exporting.slide_export import SlideExport
from tests.support.scale import cases
from tests.support.scored import ScoredCase, random_case

KINDS = {"annotation", "detection", "tile", "cell", "tmaCore", "root"}


def qupath_objects(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file as QuPath takes them; what it ignores or refuses fails."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
        return dict(pairs)

    collection = json.loads(data, object_pairs_hook=unique, parse_float=Decimal, parse_constant=pytest.fail)
    assert collection["type"] == "FeatureCollection"
    identities = set()
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        identities.add(feature["id"])
        properties = feature["properties"]
        assert properties["objectType"] in KINDS
        classification = properties.get("classification")
        if classification is not None:
            assert isinstance(classification["name"], str)
            assert len(classification["color"]) == 3
            assert all(isinstance(value, int) and 0 <= value <= 255 for value in classification["color"])
        assert all(isinstance(value, int | Decimal) for value in properties["measurements"].values())
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            for value in (value for point in ring for value in point):
                assert -Decimal(value).as_tuple().exponent <= 2, "more than two decimals"
        yield feature
    assert len(identities) == len(collection["features"])


def export_of(case: ScoredCase, *, origin="auto", **more: Any) -> SlideExport:
    frame = frame_of(case.size, case.bounds, origin=origin)
    return SlideExport("s", case.patches, frame, case.mpp, 0.5, **more)


@pytest.mark.parametrize("seed", range(cases(60, full=1500)))
def test_regions_come_back_with_their_area(seed: int, tmp_path: Path) -> None:
    case = random_case(seed)
    export = export_of(case)
    (tmp_path / "r.geojson").write_bytes(export.regions_geojson())
    objects = list(qupath_objects(export.regions_geojson()))
    assert len(objects) == len(export.regions)
    classes = [found["properties"]["classification"] for found in objects]
    assert len({(kind["name"], *kind["color"]) for kind in classes}) == len({kind["name"] for kind in classes})
    for found, region in zip(objects, export.regions, strict=True):
        assert found["properties"]["objectType"] == "annotation"
        shape = shapely.from_geojson(json.dumps(found["geometry"], default=float))
        assert shape.is_valid
        assert shape.area == pytest.approx(region.polygon.area, rel=1e-6)
        measured = found["properties"]["measurements"]
        assert float(measured["distmil: area mm2"]) == pytest.approx(shape.area * case.mpp**2 / 1e6, rel=1e-6)
        assert measured["distmil: patches"] == region.num_patches
        assert float(measured["distmil: fused top"]) == pytest.approx(region.top["fused"], abs=1e-6)
    if not objects:
        return
    annotation = read_annotation(tmp_path / "r.geojson", slide_size=case.size)
    assert (annotation.writer, annotation.num_repaired, annotation.num_dropped) == ("qupath", 0, 0)
    is_cropped = export.frame != frame_of(case.size, None, origin="slide")
    origin = "bounds" if is_cropped else "slide"
    placed, _ = place(annotation, origin=origin, bounds=case.bounds, slide_size=case.size, tissue=None)
    for name, area in placed.regions.items():
        own = shapely.union_all([region.polygon for region in export.regions if region.name == name])
        assert area.symmetric_difference(own).area == pytest.approx(0, abs=1e-6 * own.area)


@pytest.mark.parametrize("seed", range(cases(40, full=800)))
def test_every_patch_is_a_tile_with_the_scores_of_the_table(seed: int) -> None:
    case = random_case(seed, is_whole=True)
    export = export_of(case, names=["attention", "probability", "fused", "topk_probability"])
    frame, wanted, found = export.frame, [], []
    for row in case.table.to_pylist():
        left, top = max(row["x"], frame.x) - frame.x, max(row["y"], frame.y) - frame.y
        right = min(row["x"] + row["extent_px"] - frame.x, frame.width)
        bottom = min(row["y"] + row["extent_px"] - frame.y, frame.height)
        if left < right and top < bottom:
            scores = [np.float32(row[name]) for name in export.names]
            wanted.append((left, top, right, bottom, row["probability"] >= 0.5, *scores))
    for tile in qupath_objects(export.patches_geojson()):
        properties = tile["properties"]
        assert properties["objectType"] == "tile"
        scores = [np.float32(float(properties["measurements"][f"distmil: {name}"])) for name in export.names]
        box = shapely.from_geojson(json.dumps(tile["geometry"], default=float)).bounds
        found.append((*box, "classification" in properties, *scores))
    assert sorted(found) == sorted(wanted)


def test_a_large_file_is_packed_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = export_of(random_case(7))
    assert sorted(export.geojson()) == ["s_patches.geojson", "s_regions.geojson"]
    monkeypatch.setattr("distmil.exporting.slide_export.MAX_PLAIN_BYTES", 1000)
    packed = export_of(random_case(7)).geojson()
    assert sorted(packed) == ["s_patches.geojson.gz", "s_regions.geojson.gz"]
    assert packed == export.geojson()
    assert gzip.decompress(packed["s_regions.geojson.gz"]) == export.regions_geojson()
    (tmp_path / "r.gz").write_bytes(packed["s_regions.geojson.gz"])
    assert read_annotation(tmp_path / "r.gz", slide_size=(1, 1)).regions
    assert geojson.MAX_PLAIN_BYTES == 2**20


def test_a_slide_without_regions_is_an_empty_collection() -> None:
    case = random_case(2)
    export = SlideExport("s", case.patches, frame_of(case.size, None, origin="auto"), case.mpp, 1.0)
    assert json.loads(export.regions_geojson()) == {"type": "FeatureCollection", "features": []}
