import csv
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import openslide
import pytest
import shapely
import tifffile

from distmil.demo import drawing
from distmil.demo.cohort import make_cohort
from distmil.errors import ConfigError

NUM_SLIDES = 6  # the fewest that hold ASAP XML, GeoJSON, an island in each, and a positive slide without annotation


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), num_slides=NUM_SLIDES, seed=3).parent


@pytest.fixture(scope="module")
def rows(cohort):
    with (cohort / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_lesions(path):
    """Return each lesion as a polygon, islands cut out, read with nothing of the tool's own."""
    if path.suffix == ".geojson":
        features = json.loads(path.read_text())["features"]
        return [shapely.Polygon(rings[0], rings[1:]) for rings in (f["geometry"]["coordinates"] for f in features)]
    polygons = {"Tumor": [], "_2": []}
    for entry in ElementTree.parse(path).iter("Annotation"):
        points = [(float(point.get("X")), float(point.get("Y"))) for point in entry.iter("Coordinate")]
        polygons[entry.get("PartOfGroup")].append(shapely.Polygon(points))
    return [shapely.difference(polygon, shapely.union_all(polygons["_2"])) for polygon in polygons["Tumor"]]


@cache
def read_pixels(path):
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def inside(polygon, pixels):
    area = np.zeros(pixels.shape[:2], np.uint8)
    cv2.fillPoly(area, [np.asarray(polygon.exterior.coords, np.int32)], 1)
    for ring in polygon.interiors:
        cv2.fillPoly(area, [np.asarray(ring.coords, np.int32)], 0)
    return area > 0


def is_tissue(pixels):
    red, green, blue = cv2.split(cv2.blur(pixels, (31, 31)))
    return cv2.max(red, blue) - green > 20


def annotated(rows):
    return [row for row in rows if row["annotation_path"]]


def test_manifest_names_half_the_slides_positive_and_leaves_the_split_to_the_tool(cohort, rows):
    assert ",".join(rows[0]) == "slide_id,slide_path,label,patient_id,annotation_path,annotation_complete"
    assert [row["label"] for row in rows].count("positive") == NUM_SLIDES // 2
    assert all(row["label"] in {"negative", "positive"} for row in rows)
    assert all((cohort / row["slide_path"]).is_file() for row in rows)


def test_only_some_patients_own_two_slides(rows):
    patients = [row["patient_id"] for row in rows]
    assert patients == [f"patient-{number:03d}" for number in (1, 1, 2, 3, 4, 5)]


def test_both_kinds_of_supervision(cohort, rows):
    positive = [row for row in rows if row["label"] == "positive"]
    assert [Path(row["annotation_path"]).suffix for row in positive] == [".xml", ".geojson", ""]
    assert [row["annotation_complete"] for row in positive] == ["true", "true", ""]
    assert not any(row["annotation_path"] + row["annotation_complete"] for row in rows if row["label"] == "negative")
    assert sorted((cohort / "annotations").iterdir()) == sorted(
        cohort / row["annotation_path"] for row in annotated(rows)
    )


def test_openslide_reads_every_slide_as_it_was_drawn(cohort, rows):
    sizes = set()
    for row in rows:
        with (
            openslide.OpenSlide(cohort / row["slide_path"]) as slide,
            tifffile.TiffFile(cohort / row["slide_path"]) as tif,
        ):
            width, height = slide.dimensions
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.5
            assert tif.pages[0].shape == (height, width, 3)
            assert 2000 <= width <= 3000
            assert not 0.9 < width / height < 1.1
            assert slide.level_count in {2, 3}
            assert slide.level_downsamples[-1] == pytest.approx(4, rel=0.01)
            coarse = np.asarray(slide.read_region((0, 0), slide.level_count - 1, slide.level_dimensions[-1]))[..., :3]
        fine = cv2.resize(read_pixels(cohort / row["slide_path"]), coarse.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(fine.astype(int) - coarse).mean() < 4
        sizes.add((width, height))
    assert len(sizes) == NUM_SLIDES


def test_tissue_lies_clear_of_the_edges_on_a_bright_ground(cohort, rows):
    for row in rows:
        pixels = read_pixels(cohort / row["slide_path"])
        edge = np.concatenate(
            [pixels[:20].reshape(-1, 3), pixels[:, :20].reshape(-1, 3), pixels[:, -20:].reshape(-1, 3)]
        )
        assert edge.mean() > 225
        assert 0.25 < is_tissue(pixels).mean() < 0.75


def test_slides_differ_in_shade(cohort, rows):
    shades = []
    for row in rows:
        pixels = read_pixels(cohort / row["slide_path"])
        shades.append(pixels[is_tissue(pixels)].mean(axis=0))
    assert np.ptp(shades, axis=0).max() > 15


def test_lesions_lie_inside_the_slide_on_tissue_and_are_darker_than_the_rest(cohort, rows):
    for row in annotated(rows):
        pixels = read_pixels(cohort / row["slide_path"])
        height, width = pixels.shape[:2]
        lesions = read_lesions(cohort / row["annotation_path"])
        assert 1 <= len(lesions) <= 3
        assert all(lesion.is_valid and shapely.box(0, 0, width, height).contains(lesion) for lesion in lesions)
        tissue, lesion = is_tissue(pixels), np.any([inside(lesion, pixels) for lesion in lesions], axis=0)
        assert 300 * 300 < lesion.sum() < 0.6 * tissue.sum()
        assert tissue[lesion].mean() > 0.95
        # swapped axes or an outline that is shifted would mix the two
        assert pixels[lesion].mean() < pixels[tissue & ~lesion].mean() - 12


def test_islands_are_carved_out_and_look_normal(cohort, rows):
    for row in annotated(rows):
        pixels = read_pixels(cohort / row["slide_path"])
        lesion = read_lesions(cohort / row["annotation_path"])[0]
        (ring,) = lesion.interiors
        island = shapely.Polygon(ring)
        assert island.area > 100 * 100
        assert pixels[inside(island, pixels)].mean() > pixels[inside(lesion, pixels)].mean() + 12


def test_formats_are_those_of_asap_and_qupath(cohort, rows):
    asap, qupath = (cohort / row["annotation_path"] for row in annotated(rows))
    root = ElementTree.parse(asap).getroot()
    assert root.tag == "ASAP_Annotations"
    assert {entry.get("Type") for entry in root.iter("Annotation")} == {"Polygon"}
    assert [group.get("Name") for group in root.iter("Group")] == ["Tumor", "_2"]
    document = json.loads(qupath.read_text())
    assert document["type"] == "FeatureCollection"
    for feature in document["features"]:
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == "Tumor"
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])


def test_every_positive_slide_has_a_lesion_and_outlines_never_cross():
    shape = (200, 310)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lesions = drawing._lesions(rng, drawing._tissue(rng, shape), has_island=True)
        polygons = [shapely.Polygon(each.outline, [] if each.island is None else [each.island]) for each in lesions]
        assert lesions[0].island is not None
        assert all(polygon.is_valid for polygon in polygons)
        assert shapely.union_all(polygons).area == pytest.approx(sum(polygon.area for polygon in polygons))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_and_a_smaller_cohort_is_the_start_of_a_larger_one(cohort, tmp_path):
    made = []
    make_cohort(tmp_path / "again", num_slides=2, seed=3, progress=lambda: made.append(1))
    make_cohort(tmp_path / "other", num_slides=2, seed=4)
    whole, again, other = (content(folder) for folder in (cohort, tmp_path / "again", tmp_path / "other"))
    slides = [path for path in again if path.parts[0] != "manifest.csv"]
    assert len(made) == 2
    assert len(slides) == 3
    assert all(again[path] == whole[path] for path in slides)
    assert whole[Path("manifest.csv")].startswith(again[Path("manifest.csv")])
    assert all(again[path] != other[path] for path in slides if path in other)


def test_a_finished_cohort_is_left_alone(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    assert make_cohort(cohort, num_slides=40, seed=9, progress=pytest.fail) == cohort / "manifest.csv"
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


def test_a_crash_leaves_no_manifest_and_the_next_call_finishes(monkeypatch, tmp_path):
    def crash():
        raise KeyboardInterrupt

    blank = np.full((300, 500, 3), 240, np.uint8)
    monkeypatch.setattr("distmil.demo.cohort.draw_slide", lambda *_args, **_options: (blank, []))
    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path, num_slides=2, progress=crash)
    assert not (tmp_path / "manifest.csv").exists()
    (tmp_path / "slides" / "demo-001.tif").write_bytes(b"half a fi")
    make_cohort(tmp_path, num_slides=2)
    assert read_pixels(tmp_path / "slides" / "demo-001.tif").shape == (300, 500, 3)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_slides_are_written_without_imagecodecs(tmp_path):
    script = f"""
import sys
sys.modules["imagecodecs"] = None
import numpy as np
from distmil.demo.cohort import encode_slide
pixels = np.full((300, 500, 3), (200, 100, 50), np.uint8)
open({str(tmp_path / "a.tif")!r}, "wb").write(encode_slide(pixels, downsamples=(1, 2)))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert np.abs(read_pixels(tmp_path / "a.tif").astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize(("num_slides", "seed"), [(1, 0), (0, 0), (4, -1)])
def test_impossible_cohorts_are_refused(num_slides, seed, tmp_path):
    with pytest.raises(ConfigError, match=f"num_slides {num_slides}, seed {seed}"):
        make_cohort(tmp_path / "cohort", num_slides=num_slides, seed=seed)
    assert not (tmp_path / "cohort").exists()
