"""Every format on the same shapes: the same areas, damage counted, and the same places on a slide."""

import json

import numpy as np
import pytest
import shapely

from distmil.annotations import origin
from distmil.annotations.reader import read_for
from distmil.annotations.regions import Grid
from distmil.annotations.slide_facts import ScannerFrame, SlideFacts
from distmil.errors import AnnotationError
from distmil.labels.rules import LabelRule, label_patches, resolve_groups
from tests.support.annotation_files import CENTRE_NM, PIXEL_NM, SIZE, WRITERS
from tests.support.data import DATA
from tests.support.scale import cases

FACTS = SlideFacts(SIZE, mpp=0.5, names=("s1", "0042.jpg"), look_up_scanner=lambda: ScannerFrame(CENTRE_NM, PIXEL_NM))
GROUPS = resolve_groups(("negative", "positive"), {"0": "positive", "1": "exclude"})
EXTENT = 20
SHELL = [(100, 60), (300, 60), (300, 260), (100, 260), (100, 60)]
HOLE = [(150, 100), (220, 100), (220, 180), (150, 180), (150, 100)]
AREA = 200 * 200
BOUNDS = (120, 80, 480, 260)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
every_format = pytest.mark.parametrize("writer", WRITERS)


def read(content, folder, facts=FACTS):
    path = folder / "CNRY_Doe.any"
    path.write_bytes(content)
    return read_for(path, facts)


def message_of(content, folder):
    """Return why a file cannot be read, "" if it can."""
    try:
        read(content, folder)
    except AnnotationError as error:
        return str(error)
    return ""


def labelled(annotation, *, place="slide", bounds=None):
    """Label a gapless grid, and return what the labels say, too, of the marked area."""
    scaled = origin.scaled(annotation, slide_size=SIZE, bounds=bounds)
    placed, _ = origin.place(scaled, origin=place, bounds=bounds, slide_size=SIZE, tissue=None)
    x, y = np.meshgrid(np.arange(0, SIZE[0], EXTENT, dtype=np.int32), np.arange(0, SIZE[1], EXTENT, dtype=np.int32))
    found = label_patches(
        Grid(x.ravel(), y.ravel(), np.full(x.size, EXTENT, np.int32)), placed,
        slide_label=1, num_classes=2, annotation_complete=True, groups=GROUPS, rule=LabelRule(), slide_id="s1",
        slide_size=SIZE,
    )  # fmt: skip
    share = found.labels.target_fraction.reshape(x.shape)
    return found, share


def area(share):
    return pytest.approx(float(share.sum()) * EXTENT**2, rel=1e-6)


@every_format
def test_a_donut(tmp_path, writer):
    annotation = read(WRITERS[writer]([("Tumor", SHELL, HOLE)]), tmp_path)
    found, share = labelled(annotation)
    assert area(share) == AREA - 70 * 80
    assert share[140 // EXTENT, 180 // EXTENT] == 0  # inside the hole
    assert share[220 // EXTENT, 260 // EXTENT] == pytest.approx(1)
    assert (annotation.writer, found.num_repaired, found.num_dropped) == (writer, 0, 0)


@every_format
def test_a_ring_that_is_open_is_the_same_ring(tmp_path, writer):
    found, share = labelled(read(WRITERS[writer]([("Tumor", SHELL[:-1])]), tmp_path))
    assert area(share) == AREA
    assert (found.num_repaired, found.num_dropped) == (0, 0)


@every_format
def test_a_self_intersection_keeps_both_loops_and_is_counted(tmp_path, writer):
    bow_tie = [(100, 60), (300, 260), (300, 60), (100, 260)]
    found, share = labelled(read(WRITERS[writer]([("Tumor", bow_tie)]), tmp_path))
    assert area(share) == AREA / 2
    assert (found.num_repaired, found.num_dropped) == (1, 0)


@every_format
def test_an_outline_of_two_corners_is_counted(tmp_path, writer):
    # YOLO's two corners are a box's centre and size, so that its outline without an area has three
    flat = [(10, 10), (50, 50)] if writer != "yolo" else [(10, 10), (50, 50), (10, 10)]
    annotation = read(WRITERS[writer]([("Tumor", SHELL), ("Tumor", flat)]), tmp_path)
    found, share = labelled(annotation)
    assert area(share) == AREA
    assert dict(annotation.dropped) == {"outlines without an area": 1}
    assert found.doubts[0] == "annotation: 1 outline without an area was left out"


@every_format
def test_a_carve_out_larger_than_its_lesion_leaves_no_target_and_says_so(tmp_path, writer):
    larger = [(50, 30), (400, 30), (400, 300), (50, 300), (50, 30)]
    outlines = [("Tumor", SHELL, larger)] if writer != "darwin" else [("Tumor", SHELL), ("exclude", larger)]
    with pytest.raises(AnnotationError, match=r"marks no target \(.*(carved|without an area)"):
        labelled(read(WRITERS[writer](outlines), tmp_path))


@every_format
def test_coordinates_outside_the_slide(tmp_path, writer):
    far = [(900, 60), (950, 60), (950, 90)]
    over_the_edge = [(600, 300), (800, 300), (800, 500), (600, 500)]
    found, share = labelled(read(WRITERS[writer]([("Tumor", over_the_edge), ("Tumor", far)]), tmp_path))
    assert area(share) == 100 * 100
    assert "annotation: 1 of its outlines lie outside the slide and mark nothing" in found.doubts[0]
    with pytest.raises(AnnotationError, match="outside the slide of 700 x 400 px"):
        labelled(read(WRITERS[writer]([("Tumor", far)]), tmp_path))


@every_format
def test_a_cropped_origin(tmp_path, writer):
    annotation = read(WRITERS[writer]([("Tumor", SHELL)]), tmp_path, facts=FACTS)
    is_absolute = writer in {"ndpa", "yolo"}  # nanometres on the glass, shares of the image
    for place, (dx, dy) in {"slide": (0, 0), "bounds": (0, 0) if is_absolute else BOUNDS[:2]}.items():
        _, share = labelled(annotation, place=place, bounds=BOUNDS)
        rows, columns = np.nonzero(share)
        assert (columns.min() * EXTENT, rows.min() * EXTENT) == (100 + dx, 60 + dy)
        assert area(share) == AREA


@every_format
def test_random_outlines_are_the_same_in_every_format(tmp_path, writer):
    for seed in range(cases(10, full=200)):
        rng = np.random.default_rng(seed)
        outlines, expected = [], shapely.Polygon()
        for _ in range(rng.integers(1, 5)):
            turn = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 30)))
            reach = np.outer(rng.uniform(20, 120) * rng.uniform(0.5, 1, len(turn)), [1, 1])
            ring = rng.uniform(0, SIZE) + reach * np.column_stack([np.cos(turn), np.sin(turn)])
            if shapely.Polygon(ring.round(2)).is_valid:
                outlines.append(("Tumor", ring.round(2).tolist()))
                expected = expected.union(shapely.Polygon(ring.round(2)))
        region = read(WRITERS[writer](outlines), tmp_path).regions.get("0" if writer == "yolo" else "Tumor", expected)
        # NDPA counts in whole nanometres, a 250th of a pixel
        assert region.symmetric_difference(expected).area <= 5e-3 * expected.length + 1e-6


@every_format
def test_a_file_cut_off_anywhere_ends_with_a_sentence_or_is_read_as_text(tmp_path, writer):
    content = WRITERS[writer]([("Tumor", SHELL, HOLE), ("Tumor", [(1, 1), (9, 1), (9, 5)])])
    for end in np.linspace(1, len(content) - 2, 40).astype(int):
        message = message_of(content[:end], tmp_path)
        assert message.startswith("the annotation") or (writer == "yolo" and not message)  # each line of it is whole
        assert "CNRY" not in message


@every_format
def test_values_of_any_type_end_with_a_sentence_or_are_right(tmp_path, writer):
    content = WRITERS[writer]([("Tumor", SHELL, HOLE)]).decode()
    rng = np.random.default_rng(0)
    for odd in ("null", "{}", "[]", "true", "1e999", '"a"', "", "-", "NaN"):
        for _ in range(6):
            numbers = [place for place, sign in enumerate(content) if sign.isdigit()]
            place = numbers[rng.integers(len(numbers))]
            assert len(message_of((content[:place] + odd + content[place + 1 :]).encode(), tmp_path)) < 500


@needs_data
@pytest.mark.parametrize(
    ("name", "polygons", "repaired", "dropped"),
    [
        ("camelyon16_annotations/json/Tumor_054.json", {"Tumor": 13}, 2, {"outlines without an area": 1}),
        ("camelyon16_annotations/json/Tumor_102.json", {"Tumor": 53}, 0, {}),
        ("camelyon16_annotations/json/Tumor_105.json", {"Tumor": 159, "_2": 1}, 0, {}),
        ("annotation_formats/asap_example.xml", {"healthy glands": 1}, 0, {}),
        ("annotation_formats/qupath05.geojson", {"UT": 1, "I": 2}, 0, {}),
        (
            "annotation_formats/103S.json",
            {"ROI (segmentation)": 1, "stroma (area)": 4, "tumor (cell)": 7, "tumor (area)": 2}, 0, {"points": 5},
        ),
        ("annotation_formats/annotations_mixed.ndpa", {"Tumor": 1}, 0, {"lines": 1, "points": 1, "other marks": 1}),
    ],
)  # fmt: skip
def test_real_files_with_their_counts(name, polygons, repaired, dropped):
    found = read_for(DATA / name, SlideFacts((63488, 40064), look_up_scanner=lambda: ScannerFrame((0, 0), (500, 500))))
    assert {group: shapely.get_num_geometries(region) for group, region in found.regions.items()} == polygons
    assert (found.num_repaired, dict(found.dropped)) == (repaired, dropped)


@needs_data
def test_the_two_real_formats_of_a_slide_mark_the_same():
    for path in sorted((DATA / "camelyon16_annotations/asap_xml").glob("*.xml")):
        other = DATA / f"camelyon16_annotations/json/{path.stem.capitalize()}.json"
        first, second = (read_for(one, SlideFacts((220_000, 230_000))) for one in (path, other))
        assert first.num_repaired == second.num_repaired
        assert set(first.regions) == set(second.regions)
        for group, region in first.regions.items():
            assert region.symmetric_difference(second.regions[group]).area <= 1e-3 * region.area


@needs_data
def test_a_real_file_that_is_cut_off():
    with pytest.raises(AnnotationError, match=r"malformed XML \(line 9, column 0\); export it again"):
        read_for(DATA / "annotation_formats/annotations_malformed.ndpa", FACTS)


# --- what single formats have


def regions(content, folder, facts=FACTS):
    return {group: region.area for group, region in read(content, folder, facts).regions.items()}


def halo_region(kind, points, **more):
    corners = "".join(f'<V X="{x}" Y="{y}"/>' for x, y in points)
    extra = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<Region Type="{kind}" HasEndcaps="0"{extra}><Vertices>{corners}</Vertices></Region>'


def test_halo_shapes_and_layers(tmp_path):
    ellipse, box = halo_region("Ellipse", [(10, 20), (110, 60)]), halo_region("Rectangle", [(200, 20), (240, 50)])
    marks = halo_region("Pin", [(1, 1)]) + halo_region("Ruler", [(1, 1), (9, 9)])
    hole = halo_region("Rectangle", [(0, 0), (9, 9)], NegativeROA=1)
    text = "".join(
        f'<Annotation Name="{name}"><Regions>{inside}</Regions></Annotation>'
        for name, inside in {"A": ellipse + marks, "B": box, "C": hole}.items()
    )
    found = read(f"<Annotations>{text}</Annotations>".encode(), tmp_path)
    assert found.regions["A"].area == pytest.approx(np.pi * 50 * 20, rel=1e-4)
    assert found.regions["B"].bounds == (200, 20, 240, 50)
    assert dict(found.dropped) == {"points": 1, "lines": 1, "holes without an outline": 1}


def test_imagescope_shapes_names_and_resolution(tmp_path):
    def region(kind, points, **more):
        return halo_region(kind, points, **more).replace("<V ", "<Vertex ")

    ellipse = region(2, [(10, 20), (110, 20), (110, 60), (10, 60)])
    text = (
        '<Annotations MicronsPerPixel="0.25"><Annotation Name=""><Attributes><Attribute Name="Description" Value="T1"/>'
        f"</Attributes><Regions>{ellipse}{region(1, [(200, 20), (240, 50)])}{region(4, [(0, 0), (5, 5)])}</Regions>"
        f'</Annotation><Annotation Name="N"><Regions>{region(9, [(0, 0)])}</Regions></Annotation></Annotations>'
    )
    found = read(text.encode(), tmp_path)
    assert found.regions["T1"].area == pytest.approx(np.pi * 50 * 20 + 40 * 30, rel=1e-4)
    assert dict(found.dropped) == {"lines": 1, "other marks": 1}
    assert found.doubts == (
        "annotation: its file states 0.25 um per pixel and the slide has 0.5; if the outlines are of another scan, set "
        "labels.scale=0.5",
    )


def test_ndpa_circles_units_and_a_slide_without_its_place(tmp_path):
    circle = '<annotation type="circle"><x>40000</x><y>-25000</y><radius>10000</radius></annotation>'
    text = "<annotations><ndpviewstate><title>T</title><coordformat>{}</coordformat>{}</ndpviewstate></annotations>"
    found = read(text.format("nanometers", circle).encode(), tmp_path).regions["T"]
    assert found.bounds == pytest.approx((350 - 20, 200 - 40, 350 + 20, 200 + 40), abs=0.01)
    with pytest.raises(AnnotationError, match="NDPA in the unit 'pixels', expected one of nanometers"):
        read(text.format("pixels", circle).encode(), tmp_path)
    with pytest.raises(AnnotationError, match="does not state where its image lies"):
        read(text.format("nanometers", circle).encode(), tmp_path, SlideFacts(SIZE))


def test_darwin_versions_ellipses_and_boxes(tmp_path):
    def path(ring):
        return [{"x": x, "y": y} for x, y in ring]

    oval = {"center": {"x": 400, "y": 200}, "radius": {"x": 50, "y": 20}, "angle": np.pi / 2}
    annotations = [
        {"name": "T", "polygon": {"path": path(SHELL), "additional_paths": [path(HOLE)]}, "bounding_box": {}},
        {"name": "E", "ellipse": oval},
        {"name": "B", "bounding_box": {"x": 1, "y": 2, "w": 30, "h": 40}},
        {"name": "K", "keypoint": {"x": 1, "y": 2}, "bounding_box": {"x": 1, "y": 2, "w": 30, "h": 40}},
        {"name": "G", "tag": {}},
    ]
    found = read(json.dumps({"image": {"width": 700, "height": 400}, "annotations": annotations}).encode(), tmp_path)
    assert found.regions["T"].area == AREA - 70 * 80
    assert found.regions["E"].bounds == pytest.approx((380, 150, 420, 250), abs=0.1)  # turned by a quarter
    assert found.regions["B"].bounds == (1, 2, 31, 42)
    assert dict(found.dropped) == {"points": 1, "slide tags": 1}


def test_a_qupath_ellipse_is_what_its_box_holds(tmp_path):
    corners = [[10, 40], [60, 20], [110, 40], [60, 60], [10, 40]]
    shape = {"type": "Polygon", "coordinates": [corners], "isEllipse": True}
    assert regions(json.dumps(shape).encode(), tmp_path)[""] == pytest.approx(np.pi * 50 * 20, rel=1e-4)


def coco_file(annotations, images=None):
    images = images or [{"id": 3, "file_name": "0042.jpg"}]
    categories = [{"id": 5, "name": "car"}]
    return json.dumps({"images": images, "categories": categories, "annotations": annotations}).encode()


def test_coco_run_lengths_of_both_kinds(tmp_path):
    # the mask of 10 x 9 px has a dot at row 6 of the first column, and rows 2 to 5 of columns 5 to 7
    expected = shapely.union_all([shapely.box(0, 6, 1, 7), shapely.box(5, 2, 8, 6)])
    for counts in ("61X13mN000`0", [6, 1, 40, 4, 5, 4, 5, 4, 21]):
        annotation = {"image_id": 3, "category_id": 5, "segmentation": {"size": [9, 10], "counts": counts}}
        assert read(coco_file([annotation]), tmp_path).regions["car"].equals(expected)
    for counts in ([6, 1, 40], "6", "\u00e9", [6, -1, 85], None, [[1]]):
        annotation = {"image_id": 3, "category_id": 5, "segmentation": {"size": [9, 10], "counts": counts}}
        with pytest.raises(AnnotationError, match="run-length mask of the COCO JSON is damaged"):
            read(coco_file([annotation]), tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_coco_run_lengths_cover_the_pixels_of_their_mask(tmp_path, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < rng.uniform(0, 1)
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = [0, *np.flatnonzero(np.diff(flat)).tolist(), mask.size]
    counts = np.diff(edges).tolist()
    annotation = {"image_id": 3, "category_id": 5, "segmentation": {"size": list(mask.shape), "counts": counts}}
    found = read(coco_file([annotation]), tmp_path)
    region = found.regions.get("car", shapely.Polygon())
    inside = shapely.contains_xy(region, *(np.indices(mask.shape)[::-1] + 0.5)) if mask.any() else np.zeros_like(mask)
    np.testing.assert_array_equal(inside, mask)
    assert region.area == mask.sum()


def test_coco_images_are_found_by_name_and_boxes_count_without_an_outline(tmp_path):
    box = {"category_id": 5, "bbox": [20, 30, 120, 70], "segmentation": []}
    images = [{"id": 3, "file_name": "a/s1.png"}, {"id": 4, "file_name": "b.png"}]
    content = coco_file([{**box, "image_id": 3}, {**box, "image_id": 4, "bbox": [0, 0, 1, 1]}], images)
    assert read(content, tmp_path).regions["car"].bounds == (20, 30, 140, 100)
    with pytest.raises(AnnotationError, match="none of the 2 images of the COCO JSON has the slide's id"):
        read(content, tmp_path, SlideFacts(SIZE, names=("other",)))
    with pytest.raises(AnnotationError, match="2 images of the COCO JSON have the slide's name"):
        read(coco_file([], [{"id": 3, "file_name": "a/s1.png"}, {"id": 4, "file_name": "b/s1.png"}]), tmp_path)
    with pytest.raises(AnnotationError, match="COCO list of results, which are a model's"):
        read(json.dumps([{**box, "image_id": 3, "score": 0.5}]).encode(), tmp_path)


def test_an_image_of_another_size_sets_the_scale(tmp_path):
    def placed(width, height):
        images = [{"id": 3, "file_name": "s1.png", "width": width, "height": height}]
        found = read(coco_file([{"image_id": 3, "category_id": 5, "bbox": [20, 30, 120, 70]}], images), tmp_path)
        return origin.scaled(found, slide_size=SIZE, bounds=(120, 80, 480, 260))

    assert placed(700, 400).regions["car"].bounds == (20, 30, 140, 100)
    half = placed(350, 200)
    assert half.regions["car"].bounds == (40, 60, 280, 200)
    assert half.doubts == ("annotation: its outlines were drawn on an image of 350 x 200 px, and are scaled by 2",)
    assert placed(240, 130).regions["car"].bounds == (40, 60, 280, 200)  # half of the scanned area
    with pytest.raises(
        AnnotationError, match="an image of 400 x 700 px, and the slide has 700 x 400 px, which are diff"
    ):
        placed(400, 700)


def test_scale_and_affine(tmp_path):
    found = read(WRITERS["qupath"]([("Tumor", SHELL)]), tmp_path)
    turned = origin.scaled(found, slide_size=SIZE, scale=0.5, affine=[0, -1, 400, 1, 0, 7])  # x' = 400 - y, y' = x + 7
    assert turned.regions["Tumor"].bounds == (400 - 130, 57, 400 - 30, 157)
    assert turned.regions["Tumor"].is_valid


def test_voc_boxes_of_tools_and_of_the_challenge(tmp_path):
    box = "<bndbox><xmin>20</xmin><ymin>30</ymin><xmax>140</xmax><ymax>100</ymax></bndbox>"
    part = box.replace("20", "1").replace("30", "1")
    item = f"<object><name>car</name>{{}}{box}<part><name>wheel</name>{part}</part></object>"
    text = f"<annotation>{{}}{item.format('')}<object><name>empty</name></object></annotation>"
    found = read(text.format("").encode(), tmp_path)
    assert found.regions["car"].bounds == (20, 30, 140, 100)
    assert dict(found.dropped) == {"other marks": 1}
    challenge = text.format("<source><database>The VOC2007 Database</database></source>")
    assert read(challenge.encode(), tmp_path).regions["car"].bounds == (19, 29, 140, 100)
    corners = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in SHELL)
    polygon = f"<annotation><object><name>car</name><polygon>{corners}</polygon></object></annotation>"
    assert regions(polygon.encode(), tmp_path) == {"car": AREA}


def test_yolo_boxes_and_what_is_none(tmp_path):
    found = read(b"\n2 0.5 0.25 0.2 0.1\r\n2 .1 .1 .1 .1\n", tmp_path)
    assert found.regions["2"].bounds == pytest.approx((35, 20, 420, 120))
    for text, what in {
        "0 0.5 0.5 0.1 0.1\n0 1 2": "line 2 .* is not a class number",
        "0 0.5 0.5 0.1 0.1 0.9": "line 1 .* has 5 numbers behind its class .a confidence",
        "0 350 200 100 50": "line 1 .* holds pixels",
    }.items():
        with pytest.raises(AnnotationError, match=what):
            read(text.encode(), tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_labelled_patches(tmp_path, separator):
    rows = ["slide_id,x,y,extent_px,label", "s1,100,60,20,1", "s1,120,60,20,positive", "s2,0,0,20,1", "s1,200,60,20,0",
            "s1,300,60,20,", "s1,400,60,20,exclude"]  # fmt: skip
    annotation = read("\ufeff".encode() + "\n".join(rows).replace(",", separator).encode(), tmp_path)
    found, share = labelled(annotation)
    assert np.argwhere(np.nan_to_num(share)).tolist() == [[3, 5], [3, 6]]
    label = found.labels.label.reshape(share.shape)
    assert [label[3, x // EXTENT] for x in (100, 120, 200, 300, 400)] == [1, 1, 0, -1, 0]
    assert (label == -1).sum() == 1
    assert found.doubts == ()


def test_a_table_says_what_it_lacks(tmp_path):
    for text, what in {
        "x,y,label\n1,2,1\n": "no column with the patches' edge in level-0 pixels; expected one of extent_px, width",
        "x,y,label,size\n1,?,1,20\n": "line 2 of the table has no number as x, y or edge",
        "x,y,label,size\n1,2,1,0\n": "line 2 of the table has an edge of 0 px",
        "slide_id,x,y,label,size\ns9,1,2,1,20\n": "no row of the table has the slide's id",
        "x,y,label,size\n1,2\n": "line 2 of the table has no number",
    }.items():
        with pytest.raises(AnnotationError, match=what):
            read(text.encode(), tmp_path)
