"""Reading outlines and masks: geometry kept, damage counted, and a message for every file that cannot be used."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from distmil.annotations import masks, reader
from distmil.annotations.arrow_file import decode_annotation, encode_annotation
from distmil.annotations.coverage import mask_shares
from distmil.annotations.origin import place
from distmil.annotations.outlines import Annotation
from distmil.annotations.reader import read_annotation, read_for
from distmil.annotations.slide_facts import SlideFacts
from distmil.annotations.tissue_file import read_tissue
from distmil.errors import AnnotationError
from tests.support.data import DATA

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
SLIDE = (700, 400)
C16_SLIDE = (220_000, 230_000)
SQUARE = [(10, 20), (40, 20), (40, 80), (10, 80)]
BOW_TIE = [(0, 0), (10, 10), (10, 0), (0, 10)]


def asap(*outlines):
    """ASAP XML of (type, group, points)."""
    text = "".join(
        f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for kind, group, points in outlines
    )
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{text}</Annotations></ASAP_Annotations>'


def feature(geometry, **properties):
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [[*map(list, ring), list(ring[0])] for ring in rings]}


def classified(points, name):
    return feature(polygon(points), objectType="annotation", classification={"name": name, "color": [200, 0, 0]})


@pytest.fixture
def read(tmp_path):
    def write_and_read(content):
        path = tmp_path / "outlines.any"
        if isinstance(content, (dict, list)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            return read_annotation(path, slide_size=SLIDE)
        except AnnotationError as error:
            errors.append(str(error))
            raise

    errors: list[str] = []
    yield write_and_read
    assert all(text.startswith("the annotation") for text in errors)
    assert not any("outlines.any" in text or str(tmp_path) in text for text in errors)


# --- ASAP


def test_asap_areas_are_read_by_group_and_other_marks_dropped(read):
    found = read(
        asap(
            ("Polygon", "Tumor", SQUARE),
            ("Spline", "None", [(100, 0), (104, 0), (104, 50)]),
            ("Rectangle", "_2", [(0, 0), (3, 0), (3, 5), (0, 5)]),
            ("Dot", "Tumor", [(1, 1)]),
            ("PointSet", "Tumor", SQUARE),
            ("PolyLine", "Tumor", SQUARE),
            ("Polygon", "Tumor", [(5, 5), (6, 6), (5, 5)]),
            ("Polygon", "Tumor", [(5, 5), (6, 6), (7, 7)]),
        )
    )
    assert {group: region.area for group, region in found.regions.items()} == {"Tumor": 1800, "": 100, "_2": 15}
    assert (found.num_repaired, found.num_dropped, found.mask) == (0, 5, None)


def test_asap_coordinates_follow_their_order_not_the_file(read):
    shuffled = "".join(f'<Coordinate Order="{i}" X="{SQUARE[i][0]}" Y="{SQUARE[i][1]}"/>' for i in (2, 0, 3, 1))
    text = asap(("Polygon", "Tumor", [])).replace(
        "<Coordinates></Coordinates>", f"<Coordinates>{shuffled}</Coordinates>"
    )
    found = read(text)
    assert found.regions["Tumor"].equals(shapely.Polygon(SQUARE))
    assert found.num_repaired == 0


def test_asap_order_is_a_number_not_text(read):
    circle = [(round(100 + 50 * np.cos(t)), round(100 + 90 * np.sin(t))) for t in np.linspace(0, 6, 12)]
    found = read(asap(("Polygon", "Tumor", circle)))
    assert found.regions["Tumor"].equals(shapely.Polygon(circle))


@pytest.mark.parametrize(("text", "value"), [("10,5", 10.5), ("1.05e1", 10.5), (" 10.5 ", 10.5)])
def test_asap_tolerates_how_numbers_are_written(read, text, value):
    found = read(asap(("Polygon", "T", [(text, 0), (20, 0), (20, 10)])))
    assert found.regions["T"].bounds == (value, 0, 20, 10)


def test_a_crossing_outline_is_repaired_and_counted(read):
    found = read(asap(("Polygon", "Tumor", BOW_TIE), ("Polygon", "Tumor", SQUARE)))
    assert found.regions["Tumor"].is_valid
    assert found.regions["Tumor"].area == pytest.approx(50 + 1800)
    assert (found.num_repaired, found.num_dropped) == (1, 0)


def test_an_outline_that_runs_over_its_start_keeps_what_it_encloses_twice(read):
    twice = [(0, 0), (20, 0), (20, 10), (-5, 10), (-5, -5), (8, -5), (8, 5), (0, 5)]  # around (4, 2) two times
    found = read(asap(("Polygon", "Tumor", twice)))
    assert found.regions["Tumor"].area == pytest.approx(25 * 10 + 13 * 5)  # even-odd would give 8 x 5 less
    assert found.num_repaired == 1


def test_overlapping_outlines_of_a_group_count_once(read):
    shifted = [(x + 15, y) for x, y in SQUARE]
    found = read(asap(("Polygon", "Tumor", SQUARE), ("Polygon", "Tumor", shifted)))
    assert found.regions["Tumor"].area == 45 * 60


@needs_data
def test_real_asap_outlines_match_the_same_slides_as_json():
    for path in sorted((DATA / "camelyon16_annotations/asap_xml").glob("*.xml")):
        found = read_annotation(path, slide_size=C16_SLIDE)
        source = json.loads((DATA / f"camelyon16_annotations/json/{path.stem.capitalize()}.json").read_text())
        for group, key in (("Tumor", "positive"), ("_2", "negative")):
            rings = [shapely.Polygon(item["vertices"]).buffer(0) for item in source[key]]
            assert found.regions.get(group, shapely.Polygon()).area == pytest.approx(
                shapely.union_all(rings).area, rel=2e-3
            )
    assert found.regions["Tumor"].is_valid


@needs_data
def test_real_files_report_their_damage():
    folder = DATA / "camelyon16_annotations/asap_xml"
    counts = {path.stem: read_annotation(path, slide_size=C16_SLIDE).num_repaired for path in folder.glob("*.xml")}
    assert counts == {
        "tumor_001": 1, "tumor_024": 1, "tumor_027": 1, "tumor_083": 0,
        "tumor_091": 2, "tumor_101": 1, "tumor_103": 1, "tumor_104": 0,
    }  # fmt: skip


# --- GeoJSON


@pytest.mark.parametrize(
    "wrap",
    [
        lambda item: {"type": "FeatureCollection", "features": [item]},
        lambda item: item,
        lambda item: [item],
        lambda item: [{"type": "FeatureCollection", "features": [item]}],
    ],
)
def test_geojson_comes_in_several_wrappings(read, wrap):
    found = read(wrap(classified(SQUARE, "Tumor")))
    assert found.regions["Tumor"].equals(shapely.Polygon(SQUARE))


def test_geojson_keeps_holes_and_collections(read):
    hole = [(20, 30), (30, 30), (30, 50), (20, 50)]
    other = polygon([(100, 0), (110, 0), (110, 30), (100, 30)])
    multi = {"type": "MultiPolygon", "coordinates": [polygon(SQUARE, hole)["coordinates"]]}
    point = {"type": "Point", "coordinates": [1, 2]}
    found = read(feature({"type": "GeometryCollection", "geometries": [multi, other, point]}))
    assert found.regions[""].area == 30 * 60 - 10 * 20 + 10 * 30
    assert not found.regions[""].contains(shapely.Point(25, 40))
    assert found.num_dropped == 1


def test_geojson_holes_without_an_area_do_no_harm(read):
    for hole in ([(20, 30), (20, 30)], [(20, 30)]):
        found = read(polygon(SQUARE, hole))
        assert (found.regions[""].area, found.num_repaired) == (1800, 0)
    empty = read({"type": "Polygon", "coordinates": [polygon(SQUARE)["coordinates"][0], []]})
    assert (empty.regions[""].area, empty.num_repaired) == (1800, 0)
    assert read({"type": "Polygon", "coordinates": []}).num_dropped == 1


def test_geojson_bare_geometry_with_a_byte_order_mark_and_a_third_coordinate(read):
    text = json.dumps({"type": "Polygon", "coordinates": [[[0, 0, 7], [10, 0, 7], [10, 30, 7], [0, 0, 7]]]})
    assert read(b"\xef\xbb\xbf" + text.encode()).regions[""].area == 150


@pytest.mark.parametrize(
    ("properties", "group"),
    [
        ({"classification": {"name": "Tumor", "color": [1, 2, 3]}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": " Tumor "}, "Tumor"),
        ({"classification": None}, ""),
        ({"classification": {"name": "Tumor"}, "name": "left", "label": "x"}, "Tumor"),
        ({"name": "Tumor"}, "Tumor"),
        ({"class": "Tumor", "name": "x"}, "Tumor"),
        ({"type": "tumor", "name": "x"}, "tumor"),
        ({"type": "annotation", "name": "x"}, "x"),
        ({"label": 2}, "2"),
        ({"label": True}, ""),
        ({"class": {"name": "Tumor"}}, "Tumor"),
        ({"objectType": "annotation", "color": [1, 2, 3], "id": "a3", "description": "large"}, ""),
        ({}, ""),
    ],
)
def test_the_class_of_a_geojson_feature(read, properties, group):
    assert list(read(feature(polygon(SQUARE), **properties)).regions) == [group]
    assert list(read({**feature(polygon(SQUARE)), "properties": None}).regions) == [""]


def test_geojson_objects_that_are_no_annotations_are_dropped(read):
    shape = polygon(SQUARE)
    features = [feature(shape, objectType=kind) for kind in ("detection", "cell", "tile", "tma_core")]
    features += [feature(shape, object_type="cell"), {**feature(shape), "id": "PathDetectionObject"}]
    features += [feature(None), feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]})]
    found = read({"type": "FeatureCollection", "features": features})
    assert (dict(found.regions), found.num_dropped) == ({}, 8)
    kept = read([{**feature(shape), "id": "PathAnnotationObject"}, feature(shape, objectType="annotation")])
    assert (list(kept.regions), kept.num_dropped) == ([""], 0)


def test_the_first_property_that_a_file_has_holds_its_classes(read):
    features = [feature(polygon(SQUARE), label="normal", name="a"), feature(polygon(SQUARE), label="tumor", name="b")]
    found = read([*features, feature(polygon(SQUARE), name="c")])
    assert set(found.regions) == {"normal", "tumor", ""}
    assert found.class_property == "label"
    mixed = read([*features, classified(SQUARE, "Tumor")])  # one classification, and it alone counts
    assert (set(mixed.regions), mixed.class_property) == ({"", "Tumor"}, "")


def test_texts_that_may_be_the_class_are_refused_with_their_names(read):
    with pytest.raises(AnnotationError, match="no feature has a class, but they have the properties 'kind', 'tissue';"):
        read([feature(polygon(SQUARE), tissue="normal", id="1"), feature(polygon(SQUARE), kind="tumor")])
    assert list(read(feature(polygon(SQUARE), area=5.5, color="#ff0000", id="x", notes="look")).regions) == [""]
    assert list(read([classified(SQUARE, "Tumor"), feature(polygon(SQUARE), tissue="normal")]).regions) == ["Tumor", ""]


@pytest.mark.parametrize("inside", ["properties", "feature"])
def test_objects_inside_objects_are_read(read, inside):
    child = classified([(1, 1), (5, 1), (5, 9), (1, 9)], "Tumor")
    cell = feature(polygon(SQUARE), objectType="cell", childObjects=[child])
    parent = classified(SQUARE, "Tissue")
    (parent["properties"] if inside == "properties" else parent)["childObjects"] = [cell]
    found = read({"type": "FeatureCollection", "features": [parent]})
    assert {name: region.area for name, region in found.regions.items()} == {"Tissue": 1800, "Tumor": 32}
    assert dict(found.dropped) == {"cells": 1}


def test_a_nucleus_is_not_read_beside_its_cell(read):
    item = {**classified(SQUARE, "Tumor"), "nucleusGeometry": polygon([(0, 0), (500, 0), (500, 300)])}
    assert read(item).regions["Tumor"].area == 1800


def test_keys_that_stand_twice_do_no_harm(read):
    text = json.dumps(classified(SQUARE, "Tumor")).replace(
        '"objectType"', '"metadata": {"a": "1"}, "metadata": {"a": "1"}, "objectType"'
    )
    assert list(read(text).regions) == ["Tumor"]


@pytest.mark.parametrize("content", [json.dumps(classified(SQUARE, "Tumor")), asap(("Polygon", "Tumor", SQUARE))])
def test_packed_files_are_read(read, content):
    assert list(read(gzip.compress(content.encode())).regions) == ["Tumor"]
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/a.geojson", content)
        archive.writestr("readme.txt", "hello")
    assert list(read(sink.getvalue()).regions) == ["Tumor"]


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ({}, ""),
        ({"lines": 1}, "1 line was left out (lines and points have no area)"),
        (
            {"lines": 3, "points": 2, "detections": 10},
            "3 lines, 2 points and 10 detections were left out (lines and points have no area; only objects of the "
            "type annotation count)",
        ),
        ({"outlines without an area": 2}, "2 outlines without an area were left out"),
        ({"cells": 1, "other marks": 1}, "1 cell and 1 other mark were left out (only objects of the type annotation "
         "count)"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_counted_by_kind(marks, text):
    assert Annotation({}, dropped=marks).dropped_text == text


def test_marks_without_an_area_are_counted_by_kind(read):
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    point = {"type": "MultiPoint", "coordinates": [[0, 0], [1, 1]]}
    features = [feature(line), feature(line), feature(point)]
    features += [feature(polygon(SQUARE), objectType=kind) for kind in ("detection", "cell", "tile", "tmaCore", "odd")]
    features += [feature(polygon(SQUARE), type="detection"), feature(None, objectType="root"), feature(None)]
    features += [feature(polygon([(1, 1), (2, 2)]))]
    assert dict(read(features).dropped) == {
        "lines": 2, "points": 1, "detections": 2, "cells": 1, "tiles": 1, "TMA cores": 1, "other marks": 2,
        "outlines without an area": 1,
    }  # fmt: skip


@needs_data
def test_real_qupath_file():
    found = read_annotation(DATA / "annotation_formats/qupath05.geojson", slide_size=C16_SLIDE)
    assert {name: shapely.get_num_geometries(region) for name, region in found.regions.items()} == {"UT": 1, "I": 2}
    assert (found.class_property, found.writer) == ("name", "qupath")


# --- formats that are not read

LABELME = {"version": "5.0", "shapes": [{"label": "car", "points": [[20, 30], [50, 30], [50, 90], [20, 90]]}]}


def test_labelme_is_named_with_a_line_of_python_that_converts_it(read):
    with pytest.raises(AnnotationError, match="it looks like LabelMe JSON: convert it to a GeoJSON file") as caught:
        read(LABELME)
    line = str(caught.value).partition("in Python ")[2].partition(")))")[0] + ")))"
    file = io.StringIO()
    exec(line, {"shapely": shapely, "file": file, "shapes": LABELME["shapes"]})  # the message's own line
    (region,) = read(file.getvalue()).regions.values()
    assert region.bounds == pytest.approx((20, 30, 50, 90))
    assert region.area == pytest.approx(30 * 60)


@pytest.mark.parametrize("text", ["hello", "0.5 0.5", "12 hello", "1 2 3", "a 0.5 0.5 0.5 0.5", "x,y\n1,2\n"])
def test_text_in_no_format_gets_a_list_of_what_was_tried(read, text):
    with pytest.raises(
        AnnotationError, match="in none of the formats that are read: it is text; tried were "
    ) as caught:
        read(text)
    for name in (
        "ASAP XML",
        "HALO XML",
        "Aperio",
        "NDPA",
        "VOC",
        "Darwin",
        "CAMELYON",
        "COCO",
        "GeoJSON",
        "YOLO",
        "CSV",
    ):
        assert name in str(caught.value)


# --- files that cannot be used

NO_FORMAT = "in none of the formats that are read: it is "
BILLION_LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;">]>'
    "<ASAP_Annotations>&lol2;</ASAP_Annotations>"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the annotation file is empty; export it again"),
        (b" \n", "the annotation file is empty"),
        (b"hello", NO_FORMAT + "text; tried were ASAP XML, HALO XML, "),
        (b"\xff\xd8\xff\xe0 JFIF", NO_FORMAT + "neither XML, JSON, text, PNG nor TIFF; tried"),
        (asap(("Polygon", "T", SQUARE))[:-25], "malformed XML .*; export it again"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "malformed XML"),
        (BILLION_LAUGHS, "the XML declares entities, which are refused"),
        ("<annotations><ndpviewstate/>", "malformed XML"),
        ("<svg/>", NO_FORMAT + "XML that starts with <svg>; tried"),
        (
            asap(("Polygon", "Tumor", [("ten", 0)])),
            "coordinate of an outline is no level-0 pixel .not two numbers",
        ),
        (asap(("Polygon", "T", [("nan", 0)])), r"coordinate .* no level-0 pixel \(value nan\)"),
        (asap(("Polygon", "T", [(0, "-inf")])), "coordinate .* no level-0 pixel .*-inf.*expected two finite numbers"),
        (asap(("Polygon", "T", [(1e300, 0)])), "coordinate .* no level-0 pixel .*e.300"),
        (asap(("Polygon", "T", [(1, 2)])).replace('X="1"', ""), "coordinate .* no level-0 pixel .not two numbers"),
        (asap(("Polygon", "T", SQUARE)).replace('Order="1"', 'Order="b"'), "the Order of a Coordinate is no number"),
        ('{"type": "Feature", ', "malformed JSON .*; export it again"),
        (b'{"type": "\xff"}', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ([1, 2], NO_FORMAT + "JSON that holds a list; tried"),
        ({}, NO_FORMAT + "JSON that holds an object; tried"),
        ([feature(None), 3], "GeoJSON holds a number instead of a FeatureCollection, Feature or geometry"),
        ({"type": "Topology"}, "a geometry is none of GeoJSON's types; expected Polygon, MultiPolygon"),
        (feature({"type": "Circle"}), "a geometry is none of GeoJSON's types"),
        ({"type": "FeatureCollection"}, "'features' in the GeoJSON is absent or null, expected a list"),
        ({"type": "Polygon", "coordinates": 5}, "'coordinates' in the GeoJSON is a number, expected a list"),
        ({"type": "Polygon", "coordinates": [[1, 2]]}, "coordinate .* no level-0 pixel"),
        ({"type": "Polygon", "coordinates": [[[1], [2]]]}, "coordinate .* no level-0 pixel"),
        ('{"type": "Polygon", "coordinates": [[[NaN, 1]]]}', "coordinate .* no level-0 pixel .*nan"),
        ({"type": "Polygon", "coordinates": [[[10**400, 1]]]}, "coordinate .* no level-0 pixel"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(read, content, message):
    with pytest.raises(AnnotationError, match=message):
        read(content)


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(AnnotationError, match=r"^the annotation cannot be opened \(No such file"):
        read_annotation(tmp_path / "gone.xml", slide_size=SLIDE)
    with pytest.raises(AnnotationError, match="not a regular file"):
        read_annotation(tmp_path, slide_size=SLIDE)


def test_outlines_have_a_size_cap(read, monkeypatch):
    monkeypatch.setattr(reader, "MAX_FILE_BYTES", 50)
    with pytest.raises(AnnotationError, match=r"holds more than the 50 bytes that are read; .*without detections"):
        read(asap(("Polygon", "T", SQUARE)))


# --- masks


@pytest.fixture
def values():
    """A wide mask, a tenth of the slide: 70 x 40, a block of ones and a block of twos."""
    mask = np.zeros((40, 70), np.uint8)
    mask[10:20, 5:30] = 1
    mask[30:35, 60:70] = 2
    return mask


def png(tmp_path, image):
    image.save(tmp_path / "mask.png")
    return read_annotation(tmp_path / "mask.png", slide_size=SLIDE)


def palette(values):
    indexed = Image.new("P", values.shape[::-1])
    indexed.putpalette([255, 255, 255, 200, 0, 0, 0, 0, 200])
    indexed.putdata(values.ravel().tolist())
    return indexed


@pytest.mark.parametrize(
    "form",
    [
        Image.fromarray,
        lambda values: Image.fromarray(values.astype(np.uint16)),
        lambda values: Image.fromarray(np.stack([values] * 3, axis=2)),
        lambda values: Image.fromarray(np.dstack([values] * 3 + [np.full_like(values, 255)])),
        lambda values: Image.fromarray(np.dstack([values, np.full_like(values, 255)])),
        palette,
    ],
    ids=["grey", "grey16", "rgb", "rgba", "grey_alpha", "palette"],
)
def test_masks_of_every_kind_give_the_same_values(tmp_path, values, form):
    found = png(tmp_path, form(values))
    np.testing.assert_array_equal(found.mask, values)
    assert (found.mask.dtype, found.mask_scale, dict(found.regions)) == (np.uint8, (10.0, 10.0), {})


def test_a_black_and_white_mask_is_zero_and_one(tmp_path, values):
    np.testing.assert_array_equal(png(tmp_path, Image.fromarray(values > 0)).mask, values > 0)


def test_large_values_do_not_wrap_to_zero(tmp_path, values):
    found = png(tmp_path, Image.fromarray(values.astype(np.uint16) * 256))
    np.testing.assert_array_equal(found.mask > 0, values > 0)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_a_tiff_mask_of_any_lossless_compression(tmp_path, values, compression):
    tifffile.imwrite(tmp_path / "mask.tif", values, tile=(16, 32), compression=compression)
    np.testing.assert_array_equal(read_annotation(tmp_path / "mask.tif", slide_size=SLIDE).mask, values)


def test_pillow_decodes_what_tifffile_lacks_a_codec_for(tmp_path, values, monkeypatch):
    tifffile.imwrite(tmp_path / "mask.tif", values, tile=(16, 32), compression="lzw")

    def fail(self):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    np.testing.assert_array_equal(read_annotation(tmp_path / "mask.tif", slide_size=SLIDE).mask, values)


@pytest.mark.parametrize("nested", [False, True])
def test_of_a_pyramid_the_finest_level_within_the_cap_is_read(tmp_path, values, monkeypatch, nested):
    full = np.kron(values, np.ones((10, 10), np.uint8))
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        file.write(full, tile=(64, 64), subifds=2 if nested else None, metadata=None)
        for step in (5, 10):
            file.write(full[::step, ::step], tile=(16, 16), subfiletype=1, metadata=None)
    monkeypatch.setattr(masks, "MAX_MASK_PX", 70 * 40 + 1)
    found = read_annotation(tmp_path / "mask.tif", slide_size=SLIDE)
    assert found.mask_scale == (10, 10)
    np.testing.assert_array_equal(found.mask, values)


@pytest.mark.parametrize(
    ("mask_size", "slide_size", "scale"),
    [
        ((70, 40), (700, 400), (10, 10)),
        ((28, 16), (700, 400), (25, 25)),
        ((1055, 632), (33_790, 20_250), (32, 32)),  # cut off: 1055.9 x 632.8
        ((1056, 633), (33_790, 20_250), (32, 32)),  # rounded up
        ((1000, 599), (33_790, 20_250), (33.79, 20_250 / 599)),  # no whole number explains it
        ((467, 267), (700, 400), (700 / 467, 400 / 267)),
        ((70, 41), (700, 400), (10, 400 / 41)),
        ((1400, 800), (700, 400), (0.5, 0.5)),
    ],
)
def test_the_scale_is_a_whole_number_where_one_explains_both_sides(mask_size, slide_size, scale):
    assert masks.mask_scale(mask_size, slide_size) == pytest.approx(scale)


@pytest.mark.parametrize("size", [(70, 41), (71, 40), (69, 40), (7, 4), (7, 5), (700, 400)])
def test_proportions_may_differ_by_one_mask_pixel(tmp_path, size):
    assert png(tmp_path, Image.new("L", size)).mask.shape == size[::-1]


@pytest.mark.parametrize("size", [(40, 70), (70, 42), (74, 40), (70, 70)])
def test_a_mask_in_other_proportions_is_refused_with_both_sizes(tmp_path, size):
    sizes = f"the mask is {size[0]} x {size[1]} px and the slide 700 x 400 px, which are different proportions"
    with pytest.raises(AnnotationError, match=sizes):
        png(tmp_path, Image.new("L", size))
    tifffile.imwrite(tmp_path / "mask.tif", np.zeros(size[::-1], np.uint8))
    with pytest.raises(AnnotationError, match=sizes):
        read_annotation(tmp_path / "mask.tif", slide_size=SLIDE)


def test_a_mask_above_the_cap_is_refused_before_it_is_decoded(tmp_path, values, monkeypatch):
    monkeypatch.setattr(masks, "MAX_MASK_PX", 2000)
    message = r"the mask has more than 2000 pixels; scale it down .* or save it as a tiled pyramid"
    with pytest.raises(AnnotationError, match=message):
        png(tmp_path, Image.fromarray(values))
    tifffile.imwrite(tmp_path / "mask.tif", values)
    with pytest.raises(AnnotationError, match=message):
        read_annotation(tmp_path / "mask.tif", slide_size=SLIDE)


@pytest.mark.parametrize("limit", [2000, 1000], ids=["warning", "error"])
def test_pillows_own_limit_stays_on(tmp_path, values, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(AnnotationError, match=r"^the mask has more than \d+ pixels"):
        png(tmp_path, Image.fromarray(values))
    assert masks.MAX_MASK_PX == 89_478_485


def test_masks_that_are_no_plain_values_are_refused(tmp_path, values):
    colours = np.stack([values, values, values * 0], axis=2)
    with pytest.raises(AnnotationError, match=r"^the mask has colours; expected one value per pixel"):
        png(tmp_path, Image.fromarray(colours))
    with pytest.raises(AnnotationError, match="the mask has transparent pixels"):
        png(tmp_path, Image.fromarray(np.dstack([values] * 4)))
    for pixels in (values.astype(np.float32), values.astype(np.int16) - 1):
        tifffile.imwrite(tmp_path / "mask.tif", pixels)
        with pytest.raises(AnnotationError, match=f"values are {pixels.dtype} with fractions or signs; expected whole"):
            read_annotation(tmp_path / "mask.tif", slide_size=SLIDE)


def test_a_jpeg_compressed_mask_is_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "mask.tif", compression="jpeg")
    with pytest.raises(AnnotationError, match=r"JPEG-compressed, which smears its values; save it losslessly"):
        read_annotation(tmp_path / "mask.tif", slide_size=SLIDE)


def test_a_stack_of_masks_is_refused(tmp_path, values):
    tifffile.imwrite(tmp_path / "mask.tif", np.stack([values, values]), photometric="minisblack")
    with pytest.raises(AnnotationError, match="several images of 70 x 40 px; expected one"):
        read_annotation(tmp_path / "mask.tif", slide_size=SLIDE)


def test_a_mask_of_the_scanned_area_covers_that_area(tmp_path):
    bounds = (100, 60, 480, 120)  # of other proportions than the slide
    values = np.zeros((30, 120), np.uint8)
    values[:5, 10:20] = 1  # level-0 x 140 to 180, y 60 to 80
    Image.fromarray(values).save(tmp_path / "mask.png")
    found = read_for(tmp_path / "mask.png", SlideFacts(SLIDE, bounds=bounds))
    assert (found.mask_scale, found.mask_corner) == ((4, 4), (100, 60))
    assert found.doubts[0].startswith("annotation: its mask has the proportions of the scanned area (480 x 120 px from")
    placed, doubt = place(found, origin="auto", bounds=bounds, slide_size=SLIDE, tissue=None)
    assert (placed, doubt) == (found, "")
    x, y = (np.array(one, np.int32) for one in ((140, 130, 0), (60, 50, 0)))
    share = mask_shares(found.mask > 0, scale=found.mask_scale, corner=found.mask_corner, x=x, y=y,
                        extent_px=np.full(3, 20, np.int32))  # fmt: skip
    assert share.tolist() == [1, 0.25, 0]
    with pytest.raises(AnnotationError, match="the mask is 120 x 30 px and the slide 700 x 400 px"):
        read_annotation(tmp_path / "mask.png", slide_size=SLIDE)
    stored = decode_annotation(encode_annotation(found))
    assert (stored.mask_scale, stored.mask_corner) == ((4, 4), (100, 60))
    tissue, doubts = read_tissue(tmp_path / "mask.png", slide_size=SLIDE, shape=(40, 70), scale=10, bounds=bounds)
    assert doubts[0].startswith("tissue file: its mask has the proportions of the scanned area")
    assert np.argwhere(tissue).min(axis=0).tolist() == [6, 14]
    assert np.argwhere(tissue).max(axis=0).tolist() == [7, 17]


@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_a_damaged_mask_is_refused_without_its_path(tmp_path, values, name):
    rng = np.random.default_rng(7)
    noisy = rng.integers(0, 2, values.shape, dtype=np.uint8)
    Image.fromarray(noisy).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:100])
    with pytest.raises(AnnotationError, match=r"^the mask cannot be decoded") as caught:
        read_annotation(tmp_path / name, slide_size=SLIDE)
    assert str(tmp_path) not in str(caught.value)
    assert name not in str(caught.value)
    (tmp_path / name).write_bytes(content[:4] + b"no image at all")
    with pytest.raises(AnnotationError, match=r"^the mask cannot be decoded") as caught:
        read_annotation(tmp_path / name, slide_size=SLIDE)
    assert str(tmp_path) not in str(caught.value)
    assert name not in str(caught.value)


@needs_data
def test_an_image_with_an_unknown_compression_is_refused():
    with pytest.raises(AnnotationError, match=r"^the mask cannot be decoded"):
        read_annotation(DATA / "broken_slides/unopenable.tiff", slide_size=SLIDE)
