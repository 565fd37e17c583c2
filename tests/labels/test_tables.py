"""Label tables: redone when and only when what they are made from changed, in the grid's order."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from distmil.bags.bag import read_labels, targets
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.errors import ConfigError
from distmil.labels.tables import SlideLabeller, bad_annotations, groups_of, labels_folder
from distmil.storage.schemas import labels_schema
from distmil.storage.store import Store
from distmil.tiling.shards import grid_of
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

TILING = {"strategy": "crop", "patch_px": 50, "mpp": None, "encode": "png", "chunk_patches": 16}


def config(**sections):
    return build_config({"tiling": TILING} | sections)


def write_boxes(path, *boxes, name="Tumor"):
    """Write boxes (left, top, right, bottom) as QuPath would."""
    features = []
    for left, top, right, bottom in boxes:
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        properties = {"objectType": "annotation", "classification": {"name": name}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


@pytest.fixture
def labeller(tmp_path, store):
    """A slide of 8 x 4 patches, with one and a half of them marked in the second row."""
    path = save_pyramid(tmp_path / "slide.tif", tissue_image((415, 210), seed=5))
    annotation = write_boxes(tmp_path / "outline.geojson", (100, 50, 175, 100))
    slide = Slide("s1", str(path), label=1, annotation_path=annotation, annotation_complete=True)
    return SlideLabeller(slide, config(), store, tile_slide(slide, config().tiling, store))


def table_of(labeller):
    return read_labels(labeller.store, labeller.table_name)


def label_at(table):
    return {(x, y): label for x, y, label in zip(*(table[n].to_pylist() for n in ("x", "y", "label")), strict=True)}


def test_labels_lie_on_the_grid(labeller):
    record = labeller.label()
    table = table_of(labeller)
    assert table.schema == labels_schema(2)
    grid = grid_of(labeller.store, labeller.config.tiling, labeller.patches)
    assert table.select(["slide_id", "x", "y", "extent_px"]).equals(grid.select(["slide_id", "x", "y", "extent_px"]))
    assert {place for place, label in label_at(table).items() if label} == {(100, 50), (150, 50)}
    assert sorted(set(table["target_fraction"].to_pylist())) == [0, 0.5, 1]
    assert (record.info["positive"], record.info["negative"], record.info["unknown"]) == (2, 30, 0)


def test_what_is_unknown_is_null(labeller):
    incomplete = replace(labeller, slide=replace(labeller.slide, annotation_complete=False))
    incomplete.label()
    found = label_at(table_of(incomplete))
    assert sorted(map(str, found.values())) == ["1"] * 2 + ["None"] * 30
    assert table_of(incomplete)["target_fraction"].null_count == 30
    bare = replace(labeller, slide=replace(labeller.slide, annotation_path=None))
    assert bare.label().info["unknown"] == 32


def test_a_finished_table_is_not_made_again(labeller, monkeypatch):
    record = labeller.label()
    writes = []
    monkeypatch.setattr(Store, "write", lambda *_: writes.append(1))
    assert labeller.finished() == record
    moved = replace(labeller, slide=replace(labeller.slide, path="/elsewhere.tif", site="Brno", split="val"))
    assert moved.finished() == record
    assert writes == []


def test_an_edited_outline_is_labelled_again(labeller, tmp_path):
    labeller.label()
    write_boxes(tmp_path / "outline.geojson", (300, 0, 400, 50))
    assert labeller.finished() is None
    labeller.label()
    assert {place for place, label in label_at(table_of(labeller)).items() if label} == {(300, 0), (350, 0)}
    assert labeller.finished()


def test_an_outline_moved_with_its_content_is_not_labelled_again(labeller, tmp_path):
    record = labeller.label()
    moved = write_boxes(tmp_path / "moved.geojson", (100, 50, 175, 100))
    assert replace(labeller, slide=replace(labeller.slide, annotation_path=moved)).finished() == record


@pytest.mark.parametrize("change", [{"annotation_complete": False}, {"label": 0}, {"annotation_path": None}])
def test_another_line_in_the_manifest_is_labelled_again(labeller, change):
    labeller.label()
    assert replace(labeller, slide=replace(labeller.slide, **change)).finished() is None


def test_other_patches_are_labelled_again(labeller, tmp_path):
    labeller.label()
    save_pyramid(tmp_path / "slide.tif", tissue_image((415, 210), seed=6))
    patches = tile_slide(labeller.slide, labeller.config.tiling, labeller.store)
    assert replace(labeller, patches=patches).finished() is None


def test_another_rule_has_a_folder_of_its_own(labeller):
    labeller.label()
    strict = replace(labeller, config=config(labels={"positive_at": 0.6}))
    assert labels_folder(strict.config) != labels_folder(labeller.config)
    assert strict.finished() is None
    assert strict.label().info["positive"] == 1
    assert labeller.finished().info["positive"] == 2


@pytest.mark.parametrize("content", ["", "{", "{}", "plain text"])
def test_a_bad_annotation_is_a_status_and_stays_one(labeller, tmp_path, content):
    (tmp_path / "outline.geojson").write_text(content)
    record = labeller.label()
    assert (record.status, record.rows) == ("bad_annotation", 0)
    assert "outline.geojson" not in record.error
    assert record.error.startswith("the annotation")
    assert str(tmp_path) not in record.error
    assert labeller.finished() == record
    write_boxes(tmp_path / "outline.geojson", (0, 0, 50, 50))
    assert labeller.finished() is None
    assert labeller.label().ok


def test_an_annotation_that_contradicts_the_label_is_a_status(labeller):
    record = replace(labeller, slide=replace(labeller.slide, label=0)).label()
    assert record.status == "bad_annotation"
    assert "s1" in record.error


def test_an_annotation_that_is_gone_is_tried_again(labeller, tmp_path):
    (tmp_path / "outline.geojson").rename(tmp_path / "away")
    record = labeller.label()
    assert record.status == "missing"
    assert labeller.finished() is None
    (tmp_path / "away").rename(tmp_path / "outline.geojson")
    assert labeller.label().ok


def test_several_classes_keep_their_shares(labeller, tmp_path):
    classes = ["normal", "adenoma", "carcinoma"]
    write_boxes(tmp_path / "outline.geojson", (100, 50, 175, 100), name="Carcinoma")
    several = replace(labeller, config=config(cohort={"classes": classes}), slide=replace(labeller.slide, label=2))
    several.label()
    table = table_of(several)
    assert table.schema == labels_schema(3)
    rows = dict(
        zip(
            zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True),
            table["fractions"].to_pylist(),
            strict=True,
        )
    )
    assert rows[100, 50] == [0, 0, 1]
    assert rows[150, 50] == [0.5, 0, 0.5]
    assert rows[0, 0] == [1, 0, 0]
    assert label_at(table)[150, 50] == 2


def test_several_classes_may_be_unknown(labeller, tmp_path):
    # Parquet's reader refuses an unknown row in a list of fixed length
    classes = ["normal", "adenoma", "carcinoma"]
    write_boxes(tmp_path / "outline.geojson", (100, 50, 175, 100), name="adenoma")
    slide = replace(labeller.slide, annotation_complete=False)
    several = replace(labeller, config=config(cohort={"classes": classes}), slide=slide)
    assert several.label().info["unknown"] == 30
    table = table_of(several)
    assert table["fractions"].null_count == 30
    target_NC = targets(table, num_classes=3, form="fraction")
    assert np.isnan(target_NC).all(axis=1).sum() == 30
    assert target_NC[~np.isnan(target_NC[:, 0])].tolist() == [[0, 1, 0], [0.5, 0.5, 0]]


def test_a_group_that_is_no_class_is_bad_input():
    with pytest.raises(ConfigError, match=r"labels\.groups\.Tumor: 'malignant'.*negative, positive, exclude"):
        groups_of(config(labels={"groups": {"Tumor": "malignant"}}))


def spoilt(labeller, tmp_path, **labels):
    """The slide with an annotation that is no XML or JSON, and its settings."""
    (tmp_path / "outline.geojson").write_text("plain text")
    return replace(labeller, config=config(labels=labels))


def test_a_bad_annotation_can_leave_the_slides_own_label(labeller, tmp_path):
    kept = spoilt(labeller, tmp_path, on_bad_annotation="label_only")
    record = kept.label()
    assert (record.status, record.info["unknown"], record.info["positive"]) == ("ok", 32, 0)
    assert table_of(kept)["label"].null_count == 32
    (doubt,) = record.info["doubts"]
    assert doubt.startswith("its annotation cannot be used, and its label alone counts: the annotation is in none")
    assert kept.finished() == record


def test_a_bad_annotation_of_a_normal_slide_leaves_it_normal(labeller):
    slide = replace(labeller.slide, label=0)  # the outline marks a target
    record = replace(labeller, slide=slide, config=config(labels={"on_bad_annotation": "label_only"})).label()
    assert (record.status, record.info["negative"]) == ("ok", 32)
    assert "the annotation marks a target" in record.info["doubts"][0]


def test_another_choice_for_bad_annotations_is_labelled_again_and_a_good_one_is_not(labeller, tmp_path):
    good = labeller.label()
    for choice in ("skip", "label_only", "fail"):
        assert replace(labeller, config=config(labels={"on_bad_annotation": choice})).finished() == good
    skip = spoilt(labeller, tmp_path)
    kept, fail = (spoilt(labeller, tmp_path, on_bad_annotation=choice) for choice in ("label_only", "fail"))
    refused = skip.label()
    assert refused.info["reason"]["value"] == "label_only"
    assert (skip.finished(), kept.finished(), fail.finished()) == (refused, None, refused)
    used = kept.label()
    assert (skip.finished(), kept.finished(), fail.finished()) == (None, used, None)
    assert skip.label().status == "bad_annotation"


def test_the_refusal_names_every_slide_once_under_its_reason():
    errors = {f"s{i}": f"s{i}: line {i} is no number" for i in range(9)} | {"t": "the file is empty"}
    error = bad_annotations(errors, noun="image")
    assert error.exit_code == 2
    first, *lines = str(error).splitlines()
    assert first.startswith("annotations of 10 images cannot be used (labels.on_bad_annotation=fail): mend them")
    assert lines == [
        "  9 (s0, s1, s2, s3, s4, s5, s6, s7, s8): line 0 to 8 is no number",
        "  1 (t): the file is empty",
    ]


def test_the_refusal_of_many_reasons_still_names_every_slide():
    letters = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(120)]
    text = str(bad_annotations({f"s{i}": words for i, words in enumerate(letters)}, noun="slide"))
    assert len(text.splitlines()) < 60
    assert all(re.search(rf"\bs{i}\b", text) for i in range(120))


def test_fields_that_earlier_versions_did_not_have_change_no_folder_unless_they_are_set():
    folders = {labels_folder(config()), labels_folder(config(labels={"positive_at": 0.0}))}
    assert len(folders) == 1
    assert not {"preset", "scale", "affine"} & config().labels.identity().keys()
    later = [{"preset": "qupath"}, {"scale": 2.0}, {"affine": [1.0, 0.0, 5.0, 0.0, 1.0, 0.0]}]
    folders |= {labels_folder(config(labels=labels)) for labels in later}
    assert len(folders) == 4
