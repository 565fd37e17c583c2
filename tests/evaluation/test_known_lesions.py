"""Which slides' lesions are known: of normal slides, and of completely annotated ones that can be read."""

import json
from dataclasses import replace

import pytest

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.evaluation.lesions import known_lesions
from distmil.storage.records import Record

PATCHES = Record("s1", {}, info={"width_px": 9000, "height_px": 6000, "mpp": 0.5, "bounds": None})


def box(left, top, right, bottom, name="tumor"):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "s1.geojson"
    marked = [box(1000, 1000, 3000, 1500), box(1500, 1000, 2000, 1500, "exclude"), box(7000, 4000, 7100, 4100)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": marked}))
    return Slide("s1", str(tmp_path / "s1.svs"), label=1, annotation_path=str(path), annotation_complete=True)


def found(slide, store):
    return known_lesions(slide, Config(), store, PATCHES)


def test_lesions_are_what_is_outlined_without_carve_outs(store, slide):
    # the carve-out of 250 um parts the first box in two; the small box of 50 um is isolated cells
    lesions = found(slide, store)
    assert (lesions.num_lesions, lesions.num_isolated) == (2, 1)
    assert sorted(lesions.at([1200, 2700, 1750, 7050], [1250, 1250, 1250, 4050]).tolist()) == [-2, -1, 0, 1]


def test_a_normal_slide_has_none(store, slide):
    assert found(replace(slide, label=0, annotation_path=None, annotation_complete=False), store).num_lesions == 0


@pytest.mark.parametrize(
    "changes",
    [{"annotation_complete": False}, {"annotation_path": None}, {"annotation_path": "/nowhere/s1.geojson"}],
)
def test_of_other_abnormal_slides_they_are_not_known(store, slide, changes):
    assert found(replace(slide, **changes), store) is None


def test_an_annotation_that_cannot_be_read_leaves_them_unknown(store, slide, tmp_path):
    (tmp_path / "s1.geojson").write_text("{")
    assert found(slide, store) is None
