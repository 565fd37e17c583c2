"""Where a Hamamatsu slide's image lies on the glass, as OpenSlide states it."""

import json

import pytest

from distmil.labels import annotation_worker
from distmil.slides import reader

STATED = {
    "hamamatsu.XOffsetFromSlideCentre": "-1200500",
    "hamamatsu.YOffsetFromSlideCentre": "40000",
    "openslide.mpp-x": "0.5",
    "openslide.mpp-y": "0.25",
}


def test_the_offset_and_the_pixel_are_in_nanometres():
    assert reader._scanner_frame(STATED) == ((-1200500.0, 40000.0), (500.0, 250.0))


@pytest.mark.parametrize("key", STATED)
@pytest.mark.parametrize("value", [None, "", "far", "nan", "inf", "0"])
def test_what_is_not_stated_is_not_guessed(key, value):
    properties = {name: text for name, text in (STATED | {key: value}).items() if text is not None}
    found = reader._scanner_frame(properties)
    if value == "0" and "Offset" in key:
        assert found is not None
    else:
        assert found is None


def test_ndpa_of_such_a_slide_lies_where_the_scanner_says(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "read_scanner_frame", lambda path: reader._scanner_frame(STATED))
    monkeypatch.setattr(annotation_worker, "_limit_memory", lambda: None)  # it would limit the tests
    monkeypatch.setattr(
        annotation_worker, "encode_annotation", lambda found: json.dumps(found.regions["tumor"].bounds).encode()
    )
    corners = [(-1200500, 40000), (-1150500, 40000), (-1150500, 65000)]
    points = "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in corners)
    shape = f'<annotation type="freehand"><closed>1</closed><pointlist>{points}</pointlist></annotation>'
    (tmp_path / "a.ndpa").write_text(
        f"<annotations><ndpviewstate><title>Tumor</title>{shape}</ndpviewstate></annotations>"
    )
    answer = annotation_worker.work({
        "path": str(tmp_path / "a.ndpa"), "slide_path": "a.ndpi", "size": [700, 400], "bounds": [5, 5, 600, 300],
        "origin": "bounds", "tissue": None, "scale": None, "known": ["tumor"], "out": str(tmp_path / "out"),
    })  # fmt: skip
    assert answer == {"unknown": [], "doubts": []}
    assert json.loads((tmp_path / "out").read_text()) == [350, 200, 450, 300]
