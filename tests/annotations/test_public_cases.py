"""Situations of public bug reports about annotations, by their generators: right, or refused with the reason."""

import runpy
import sys

import pytest

from distmil.bags.bag import read_labels
from distmil.cohort import read_cohort
from distmil.config.loading import build_config
from distmil.labels.tables import SlideLabeller
from tests.support.data import DATA
from tests.support.tiles import tile_slide

CASES = DATA / "public_cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the shared data is not here")


@pytest.fixture
def labelled(tmp_path, store, monkeypatch):
    """Make a case, and return by annotation the record of its labels and the places of its positive patches."""

    def make(name, *arguments):
        script = next(CASES.glob(f"{name}_*.py"))
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "case"), *arguments])
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the folder of shared data stays as it is
        monkeypatch.syspath_prepend(CASES)
        runpy.run_path(str(script))
        manifest = tmp_path / "case" / "manifest.csv"
        rows = manifest.read_text().splitlines()  # where a file stands in val as well, the manifest is refused
        manifest.write_text("\n".join(row for row in rows if not row.endswith(",val")) + "\n")
        config = build_config({"cohort": {"manifest": str(manifest)}})
        found = {}
        for slide in read_cohort(config.cohort, manifest=manifest, needs_labels=True, needs_splits=True).slides:
            if not slide.annotation_path or slide.split != "train":
                continue
            labeller = SlideLabeller(slide, config, store, tile_slide(slide, config.tiling, store))
            record, places = labeller.label(), set()
            if record.ok:
                table = read_labels(store, labeller.table_name)
                columns = (table[name].to_pylist() for name in ("x", "y", "label"))
                places = {(x, y) for x, y, label in zip(*columns, strict=True) if label}
            found[slide.slide_id] = (record, places)
        return found

    return make


def cells(left, top, right, bottom):
    """Return the corners of the patches of 224 px that a box touches."""
    columns = range(left // 224 * 224, right, 224)
    return {(x, y) for x in columns for y in range(top // 224 * 224, bottom, 224)}


@pytest.mark.parametrize("offset", [(1200, 800), (400, 300)])
def test_outlines_of_a_cropped_slide(labelled, offset):
    x, y = offset
    for record, places in labelled("02", *map(str, offset)).values():
        assert places == cells(x + 500, y + 500, x + 900, y + 900)
        assert record.info["unknown"] == 0


def test_classes_under_other_properties(labelled):
    found = labelled("03")
    assert set(found) == {"type", "label", "class", "name"}
    for name, (record, places) in found.items():
        assert places == cells(500, 500, 900, 900)
        assert record.info["doubts"] == [f"annotation: the class of its outlines was read from the property '{name}'"]


def test_a_region_of_interest_without_a_class(labelled):
    for record, places in labelled("04").values():
        assert places == cells(500, 500, 900, 900)
        assert record.info["unknown"] == 0
        assert (
            "1 outlines without a class, which lie around or on classified ones, mark nothing"
            in record.info["doubts"][0]
        )


def test_marks_without_an_area(labelled):
    found = {name: record for name, (record, _) in labelled("06").items()}
    assert found["line"].info["doubts"] == ["annotation: 1 line was left out (lines and points have no area)"]
    assert found["det"].info["doubts"] == [
        "annotation: 1 detection was left out (only objects of the type annotation count)"
    ]
    assert found["line2"].status == "bad_annotation"
    assert "marks no target (1 line was left out" in found["line2"].error
