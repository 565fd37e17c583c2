import json
import random
import uuid
from typing import Any

import numpy as np
import pytest
import shapely

from distmil.annotations import origin
from distmil.annotations.outlines import Annotation
from distmil.errors import AnnotationError
from distmil.exporting.frame import Frame, frame_of
from distmil.labels.rules import default_groups
from distmil.viewing.drawing import Drawing, Outline, check_file, doubts_of, drawing_of, from_page, to_file, to_page
from tests.support.scale import cases

CLASSES = ["normal", "tumor", "stroma"]


def random_drawing(seed: int) -> tuple[Drawing, dict[str, list[shapely.Polygon]]]:
    """Draw disjoint polygons, some with a hole, and return them as shapely has them too."""
    rng = np.random.default_rng(seed)
    outlines, expected = [], {}
    for i in range(int(rng.integers(0, 9))):
        corners = int(rng.integers(3, 40))
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners)) + rng.uniform(0, 7)
        while np.diff(angle, append=angle[0] + 2 * np.pi).max() > np.pi:  # the centre lies inside
            corners, angle = 5, np.linspace(0, 2 * np.pi, 5, endpoint=False)
        centre = np.array([1000 * i + 500, rng.integers(500, 3000)])
        ring = centre + (rng.uniform(100, 450, corners)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))
        rings = [ring.round(2).tolist()]
        if rng.random() < 0.4:
            rings.append((centre + np.array([[-9, -9], [9, -9], [9, 9], [-9, 9]])).round(2).tolist())
        polygon = shapely.Polygon(rings[0], rings[1:])
        if not polygon.is_valid or not polygon.area:
            continue
        name = str(rng.choice([*CLASSES, "exclude", "", "?3"]))
        outlines.append(Outline(name, [[*ring, ring[0]] for ring in rings]))
        expected.setdefault(name, []).append(polygon)
    return Drawing(outlines, bool(rng.random() < 0.5), int(rng.integers(1, 9))), expected


@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_a_saved_drawing_is_read_as_it_was_drawn(seed: int) -> None:
    drawing, expected = random_drawing(seed)
    rng = random.Random(seed)
    size = (12_000, 5_000)
    bounds = rng.choice([None, (0, 0, *size), (700, 300, 9_000, 4_000)])
    frame = frame_of(size, bounds, origin="auto")
    page = from_page(to_page(drawing), classes=CLASSES)
    assert (list(page.outlines), page.is_complete) == (list(drawing.outlines), drawing.is_complete)
    data = to_file(drawing, "s", frame, classes=CLASSES)
    # whatever labels.origin says: the file knows its corner
    given = rng.choice(["auto", "slide", "bounds"])
    placed, doubt = origin.place(check_file(data), origin=given, bounds=bounds, slide_size=size, tissue=None)
    assert doubt == ""
    assert placed.num_repaired == placed.num_dropped == 0
    assert set(placed.regions) == set(expected)
    for name, polygons in expected.items():
        wanted = shapely.union_all(polygons)
        assert placed.regions[name].symmetric_difference(wanted).area <= 1e-6 * wanted.area
    again = drawing_of(placed, groups=default_groups(CLASSES), classes=CLASSES)
    assert sorted(outline.name for outline in again.outlines) == sorted(outline.name for outline in drawing.outlines)


@pytest.mark.parametrize("seed", range(cases(20, full=500)))
def test_a_saved_drawing_keeps_qupaths_rules(seed: int) -> None:
    drawing, _ = random_drawing(seed)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)  # no duplicate keys
        return dict(pairs)

    data = to_file(drawing, "s", Frame(10, 20, 100, 100), classes=CLASSES)
    found = json.loads(data, object_pairs_hook=once)
    ids = [str(uuid.UUID(feature["id"])) for feature in found["features"]]
    assert len(set(ids)) == len(ids) == len(drawing.outlines)
    for feature, outline in zip(found["features"], drawing.outlines, strict=True):
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        if outline.name:
            assert properties["classification"]["name"] == outline.name
            assert len(properties["classification"]["color"]) == 3
        else:
            assert "classification" not in properties
        for ring, drawn in zip(feature["geometry"]["coordinates"], outline.rings, strict=True):
            assert ring[0] == ring[-1]
            assert all(round(value, 2) == value for point in ring for value in point)
            np.testing.assert_allclose(np.array(ring) + np.array([10, 20]), drawn, atol=0.006)


def page(**changes: Any) -> dict[str, Any]:
    ring = [[0, 0], [10, 0], [10, 7], [0, 0]]
    feature = {
        "type": "Feature",
        "properties": {"name": "tumor"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    return {"type": "FeatureCollection", "distmil": {"complete": False}, "features": [feature]} | changes


def shape(coordinates: Any, *, kind: str = "Polygon", name: Any = "tumor") -> dict[str, Any]:
    return {"properties": {"name": name}, "geometry": {"type": kind, "coordinates": coordinates}}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "not those of this page"),
        (page(distmil=None), "'distmil' is missing"),
        (page(distmil={"complete": 1}), "'complete' is missing"),
        (page(features={}), "'features' is missing"),
        (page(features=[7]), "'properties' is missing"),
        (page(features=[shape([], name=None)]), "'name' is missing"),
        (page(features=[shape([], name="Mrs. Smith")]), "the class 'Mrs. Smith'; expected"),
        (page(features=[shape([], kind="MultiPolygon")]), "no Polygon"),
        (page(features=[shape([])]), "no ring"),
        (page(features=[shape("abc")]), "'coordinates' is missing"),
        (page(features=[shape([[[0, 0], [1, 1], [0, 0]]])]), "fewer than three corners"),
        (page(features=[shape([[[0, 0], [1, 1], [2]]])]), "not two numbers"),
        (page(features=[shape([[[0, 0], [1, 1], [2, "3"]]])]), "not two numbers"),
        (page(features=[shape([[[0, 0], [1, 1], [2, True]]])]), "not two numbers"),
        (page(features=[shape([[[0, 0], [1, 1], [2, 1e300]]])]), "not two numbers"),
        (b'{"distmil":{"complete":true},"features":[{"properties":{"name":""},"geometry":{"type":"Polygon",'
         b'"coordinates":[[[0,0],[1,0],[NaN,1]]]}}]}', "not two numbers"),
        (page(features=[shape([[[0, 0], [1, 1], [10**400, 0]]])]), "not (two numbers|JSON)"),
        (page(features=[shape([[[i, i * i % 97] for i in range(300_001)]])]), "300002 points; expected at most"),
        (page(features=[0] * 20_001), "20001 outlines; expected at most"),
        (b" " * (16 * 2**20 + 1), "expected at most 16777216"),
    ],
)  # fmt: skip
def test_what_is_no_drawing_is_refused_in_words(sent: Any, words: str) -> None:
    data = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    with pytest.raises(AnnotationError, match=words):
        from_page(data, classes=CLASSES)


def test_a_slides_annotation_is_started_from_by_what_its_groups_mean() -> None:
    ring = shapely.box(10, 20, 110, 60).difference(shapely.box(30, 30, 50, 50))
    classes = CLASSES[:2]
    groups = default_groups(classes)
    annotation = Annotation({"_0": ring, "_2": shapely.box(0, 0, 5, 3), "?1": shapely.box(7, 0, 9, 3)})
    found = drawing_of(annotation, groups=groups, classes=classes).outlines
    assert [outline.name for outline in found] == ["tumor", "exclude", "?1"]
    assert shapely.Polygon(found[0].rings[0], found[0].rings[1:]).equals(ring)
    both = shapely.union_all([shapely.box(0, 0, 5, 3), shapely.box(10, 0, 15, 3)])
    loose = drawing_of(Annotation({"": both}), groups=groups, classes=classes).outlines
    assert [outline.name for outline in loose] == ["tumor", "tumor"]
    # among three classes nobody knows which one is meant
    assert drawing_of(Annotation({"": ring}), groups=default_groups(CLASSES), classes=CLASSES).outlines[0].name == ""
    mask = drawing_of(Annotation({}, mask=np.ones((2, 3), np.uint8)), groups=groups, classes=classes)
    assert "mask image" in mask.refusal
    assert drawing_of(None, groups=groups, classes=classes) == Drawing()


def test_what_training_will_refuse_is_said_when_it_is_saved() -> None:
    box = [[[0, 0], [10, 0], [10, 7], [0, 0]]]
    crossed = [[[0, 0], [10, 10], [10, 0], [0, 7], [0, 0]]]

    def doubts(label: str, *outlines: Outline, is_complete: bool = False) -> list[str]:
        drawing = Drawing(outlines, is_complete)
        read = check_file(to_file(drawing, "s", Frame(0, 0, 9, 9), classes=CLASSES))
        return doubts_of(drawing, read, label=label, classes=CLASSES)

    assert "labels this slide normal, and training refuses stroma" in doubts("normal", Outline("stroma", box))[0]
    assert doubts("normal", Outline("normal", box), Outline("exclude", box)) == []
    assert doubts("tumor", Outline("tumor", box)) == doubts("", Outline("tumor", box)) == []
    assert "complete annotation without tumor" in doubts("tumor", Outline("normal", box), is_complete=True)[0]
    assert doubts("tumor", is_complete=True) == []
    assert doubts("tumor", Outline("tumor", crossed)) == [
        "1 of the outlines cross themselves; every loop counts as inside"
    ]
