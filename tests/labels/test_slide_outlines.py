"""Outlines in the store: read once in a child process for labels and drawings, and nothing in them names a person."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from distmil.annotations.arrow_file import decode_annotation, encode_annotation
from distmil.annotations.outlines import Annotation
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.defects import DEFECT
from distmil.errors import AnnotationError
from distmil.labels.slide_outlines import SlideOutlines
from distmil.labels.tables import SlideLabeller
from distmil.pipeline import label, tile_report
from distmil.storage.records import Record
from distmil.visualization.slide_maps import rings_of
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

TILING = {"strategy": "crop", "patch_px": 50, "mpp": None, "encode": "png", "chunk_patches": 16}


def config(**sections):
    return build_config({"tiling": TILING} | sections)


def feature(box, **properties):
    left, top, right, bottom = box
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "CNRYFILE_Doe.geojson"


@pytest.fixture
def outlines(tmp_path, store, path):
    """A slide of 8 x 4 patches."""
    slide_path = save_pyramid(tmp_path / "slide.tif", tissue_image((415, 210), seed=5))
    path.write_text(json.dumps([feature((100, 50, 175, 100), objectType="annotation", classification="Tumor")]))
    slide = Slide("s1", str(slide_path), label=1, annotation_path=str(path), annotation_complete=True)
    return SlideOutlines(slide, config(), store, tile_slide(slide, config().tiling, store))


@pytest.fixture
def asked(monkeypatch):
    """Count what the child process is asked."""
    made = []
    ask = SlideOutlines._ask

    def counted(self, *given):
        made.append(self.slide.slide_id)
        return ask(self, *given)

    monkeypatch.setattr(SlideOutlines, "_ask", counted)
    return made


def labeller_of(outlines, **changes):
    return SlideLabeller(replace(outlines.slide, **changes), outlines.config, outlines.store, outlines.patches)


def draw(outlines):
    worker = tile_report._Illustrator(outlines.config, outlines.store, "reports/r")
    return worker((outlines.slide, outlines.patches, "n"))


def everything_stored(store):
    return b"".join(file.read_bytes() for file in sorted(Path(store.root).rglob("*")) if file.is_file())


def test_labels_report_and_maps_read_the_annotation_once(outlines, asked):
    record = labeller_of(outlines).label()
    assert (record.info["positive"], record.info["negative"]) == (2, 30)
    assert draw(outlines)[0]["labels"] == {"positive": 2, "negative": 30, "unknown": 0}
    (ring,) = rings_of(outlines.read().annotation)
    assert shapely.Polygon(ring).bounds == (100, 50, 175, 100)
    assert asked == ["s1"]


@pytest.mark.parametrize("change", ["edited", "damaged", "gone", "origin"])
def test_the_annotation_is_read_again_when_it_must_be(outlines, asked, path, change):
    outlines.read()
    stored = next(name for name in outlines.store.names(outlines.folder) if name.endswith(".arrow"))
    if change == "edited":
        path.write_text(json.dumps([feature((0, 0, 10, 20), classification="Tumor")]))
    elif change == "damaged":
        outlines.store.write(f"{outlines.folder}/{stored}", b"damaged")
    elif change == "gone":
        outlines.store.delete(f"{outlines.folder}/{stored}")
    else:
        outlines = replace(outlines, config=config(labels={"origin": "slide"}))
    expected = (0, 0, 10, 20) if change == "edited" else (100, 50, 175, 100)
    assert outlines.read().annotation.regions["tumor"].bounds == expected
    assert asked == ["s1", "s1"]


def test_a_failure_is_kept_too(outlines, asked, path):
    path.write_text('{"type": "Feature"')
    for _ in range(2):
        with pytest.raises(AnnotationError, match=r"^the annotation: malformed JSON"):
            outlines.read()
    assert asked == ["s1"]


def test_what_an_earlier_version_refused_is_tried_again(outlines, asked, path):
    path.write_text('{"type": "Feature"')
    with pytest.raises(AnnotationError):
        outlines.read()
    assert labeller_of(outlines).label().status == "bad_annotation"
    labeller = labeller_of(outlines)
    assert labeller.finished() is not None
    for committed in (outlines.committed, labeller.committed):
        record = committed.read()
        info = {key: value for key, value in record.info.items() if key != "reads"}
        committed.commit(record.key, status=record.status, error=record.error, info=info)
    assert labeller.finished() is None
    with pytest.raises(AnnotationError):
        outlines.read()
    assert asked == ["s1", "s1"]


def test_the_slide_is_found_in_a_file_about_many_images(outlines, path):
    images = [{"id": number, "file_name": f"s{number}.png"} for number in range(3)]
    boxes = [{"image_id": number, "category_id": 1, "bbox": [10 * number, 0, 50, 20]} for number in range(3)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "Tumor"}]}
    path.write_text(json.dumps(content))
    assert outlines.read().annotation.regions["tumor"].bounds == (10, 0, 60, 20)


def test_scale_and_affine_of_the_configuration_bring_outlines_to_the_slide(outlines, asked):
    folder = outlines.folder
    moved = replace(outlines, config=config(labels={"scale": 0.5, "affine": [1.0, 0.0, 7.0, 0.0, 2.0, 0.0]}))
    assert moved.read().annotation.regions["tumor"].bounds == (50 + 7, 50, 87.5 + 7, 100)
    assert moved.folder != folder
    assert outlines.read().annotation.regions["tumor"].bounds == (100, 50, 175, 100)
    assert asked == ["s1", "s1"]


def test_ndpa_looks_for_its_place_in_the_slides_file(outlines, path):
    points = "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in ((0, 0), (9, 0), (9, 9)))
    view = f'<title>T</title><annotation type="freehand"><closed>1</closed><pointlist>{points}</pointlist></annotation>'
    path.write_text(f"<annotations><ndpviewstate>{view}</ndpviewstate></annotations>")
    with pytest.raises(AnnotationError, match=r"NDPA counts in nanometres .* give the NDPI file as the slide"):
        outlines.read()


def test_an_annotation_that_takes_too_long_ends_its_slide_and_more_time_tries_again(outlines, asked, path):
    rng = np.random.default_rng(1)
    rings = [rng.uniform(0, 400, (590, 2)).round(1).tolist() for _ in range(40)]
    path.write_text(json.dumps({"type": "MultiPolygon", "coordinates": [[[*ring, ring[0]]] for ring in rings]}))
    short = replace(outlines, config=config(labels={"timeout_s": 1}))
    for _ in range(2):
        with pytest.raises(AnnotationError, match=r"took more than labels.timeout_s = 1 s"):
            short.read()
    assert asked == ["s1"]
    record = labeller_of(short).label()
    assert (record.status, DEFECT in record.info) == ("bad_annotation", False)
    longer = replace(outlines, config=config(labels={"timeout_s": 2}))
    with pytest.raises(AnnotationError, match=r"took more than labels.timeout_s = 2 s"):
        longer.read()
    assert asked == ["s1", "s1"]


def test_a_group_that_means_nothing_is_named_on_the_console_only(outlines, path):
    features = [
        feature((0, 0, 50, 50), classification="CNRYGROUP_Doe"),
        feature((100, 50, 175, 100), classification="Tumor"),
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    found = outlines.read()
    assert found.unknown == ["CNRYGROUP_Doe"]
    assert sorted(found.annotation.regions) == ["?1", "tumor"]
    assert outlines.read().unknown == []
    told = []
    record = labeller_of(outlines).label(told.extend)
    assert record.info["unmapped"] == 1
    assert (
        "annotation: 1 of its groups are not in labels.groups; patches that they touch are unknown"
        in record.info["doubts"]
    )
    about, _ = draw(outlines)
    assert "CNRY" not in json.dumps([record.to_json(), about])
    assert b"CNRY" not in everything_stored(outlines.store)


def test_the_worker_hands_the_names_to_the_driver(outlines, path):
    path.write_text(
        json.dumps([feature((0, 0, 50, 50), classification="CNRY"), feature((0, 0, 9, 9), classification="tumor")])
    )
    record, unknown = label._Labeller(outlines.config, outlines.store)((outlines.slide, outlines.patches))
    assert unknown == ["CNRY"]
    assert "CNRY" not in json.dumps(record.to_json())


def test_the_report_hands_the_names_to_the_driver(outlines, path):
    path.write_text(json.dumps([feature((0, 0, 50, 50), classification="CNRY")]))
    about, unknown = draw(outlines)
    assert unknown == ["CNRY"]
    assert "the annotation's only group is not known" in about["unusable"]


@pytest.mark.parametrize("content", ['{"type": "Feature", "geometry": 5}', '{"names": 5}', "", "[" * 10**5])
def test_no_annotation_ends_the_report(outlines, path, content):
    path.write_text(content)
    about, _ = draw(outlines)
    assert about["unusable"].startswith("the annotation")


def test_names_that_differ_in_case_are_one_group(outlines, path):
    path.write_text(json.dumps([feature((0, 0, 9, 9), classification=name) for name in ("Tumor", "TUMOR ", "tumor")]))
    assert list(outlines.read().annotation.regions) == ["tumor"]


@pytest.mark.parametrize("bounds", [[50, 50, 300, 100], None, "absent"])
def test_outlines_of_a_cropped_slide_are_moved_for_every_reader(outlines, bounds):
    info = {name: value for name, value in outlines.patches.info.items() if name != "bounds"}
    info |= {} if bounds == "absent" else {"bounds": bounds}
    outlines = replace(
        outlines, patches=replace(outlines.patches, info=info), config=config(labels={"origin": "bounds"})
    )
    by = 50 if bounds and bounds != "absent" else 0
    expected = (100 + by, 50 + by, 175 + by, 100 + by)
    assert outlines.read().annotation.regions["tumor"].bounds == expected
    assert labeller_of(outlines).label().info["positive"] == 2


def test_masks_are_kept_as_they_are(outlines, tmp_path):
    values = np.zeros((21, 42), np.uint8)
    values[3:9, 10:30] = 1
    Image.fromarray(values).save(tmp_path / "mask.png")
    outlines = replace(outlines, slide=replace(outlines.slide, annotation_path=str(tmp_path / "mask.png")))
    found = outlines.read().annotation
    assert (found.mask == values).all()
    assert rings_of(found) == []


def test_a_file_of_outlines_holds_all_of_an_annotation():
    ring = shapely.Polygon([(0, 0), (9.25, 0), (9, 8)], [[(5, 2), (6, 2), (6, 3)]])
    made = Annotation(
        {"": ring, "\u00e9": shapely.MultiPolygon([ring, shapely.box(20, 20, 30, 40)])},
        num_repaired=2, dropped={"lines": 3}, writer="asap", class_property="type",
    )  # fmt: skip
    read = decode_annotation(encode_annotation(made))
    assert {name: region.wkb for name, region in read.regions.items()} == {n: r.wkb for n, r in made.regions.items()}
    assert replace(read, regions={}) == replace(made, regions={})
    masked = Annotation({}, mask=np.arange(12, dtype=np.uint8).reshape(3, 4), mask_scale=(10.5, 3.0))
    read = decode_annotation(encode_annotation(masked))
    assert (read.mask == masked.mask).all()
    assert read.mask_scale == (10.5, 3.0)


def test_a_slide_without_annotation_has_no_outlines(outlines, asked):
    bare = replace(outlines, slide=replace(outlines.slide, annotation_path=None))
    assert bare.read() is None
    assert rings_of(None) == []
    assert asked == []
    assert Record.from_json(labeller_of(bare).label().to_json()).ok
