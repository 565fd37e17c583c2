"""One slide's predictions: made once, made again when anything they depend on changes or a file is not whole."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distmil.bags.bag import BagEntry
from distmil.cohort import Slide
from distmil.errors import SlideError
from distmil.inference.bundle import load_bundle, save_bundle
from distmil.inference.predictor import (
    SlidePredictor,
    check_finite,
    keep_slides,
    reading_of,
    shown_threshold,
    temperature_of,
)
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import logit
from distmil.labels.slide_outlines import annotation_version
from distmil.storage.records import Record
from distmil.storage.schemas import embeddings_schema, to_ipc
from tests.inference.test_mlflow_model import make_bundle
from tests.inference.test_tables import some_scores
from tests.support.bags import EMBEDDING, small_config
from tests.support.scale import cases
from tests.support.slides import save_pyramid, tissue_image

SIZE, EDGE = (300, 200), 50
OUTLINE = {"type": "Polygon", "coordinates": [[[10, 10], [90, 10], [90, 60], [10, 10]]]}


def embed(patches):
    return torch.tensor(patches).float()


def write_embeddings(store, *, seed=0, value=None):
    x, y = (axis.ravel().astype(np.int32) for axis in np.meshgrid(range(0, SIZE[0], EDGE), range(0, SIZE[1], EDGE)))
    embedding_NE = np.random.default_rng(seed).normal(size=(len(x), EMBEDDING)).astype(np.float16)
    if value is not None:
        embedding_NE[3, 2] = value
    flat = pa.FixedSizeListArray.from_arrays(pa.array(embedding_NE.ravel()), EMBEDDING)
    columns = [pa.array(["s1"] * len(x)), x, y, np.full(len(x), EDGE, np.int32), flat]
    table = pa.table(columns, schema=embeddings_schema(EMBEDDING))
    return store.write_part("embeddings/e/s1", "part-0000.arrow", to_ipc(table), rows=len(x))


@pytest.fixture
def bundle(store):
    save_bundle(store, make_bundle())
    return load_bundle("a-run", store)


@pytest.fixture
def predictor(store, tmp_path, bundle):
    path = tmp_path / "slide.tif"
    save_pyramid(path, tissue_image(SIZE))
    outlines = tmp_path / "outline.geojson"
    outlines.write_text(json.dumps(OUTLINE))
    slide = Slide("s1", str(path), label=1, annotation_path=str(outlines))
    entry = BagEntry("s1", 1, "val", False, "embeddings/e/s1", (write_embeddings(store),), None)
    patches = Record("s1", {}, info={"width_px": SIZE[0], "height_px": SIZE[1], "mpp": 0.5})
    config = small_config(cohort={"classes": bundle.classes}, prediction={"map_px": 150})
    return SlidePredictor(entry, slide, patches, annotation_version(slide), bundle.digest, config, store, "run")


def make(predictor, bundle):
    """Make what is missing, as a worker does, and return what was made."""
    found = predictor.find()
    made = []
    scores = found.scores
    if scores is None:
        scores = predictor.score(bundle, embed)
        made.append("scores")
    if found.maps is None and predictor.config.prediction.maps:
        predictor.draw(scores, bundle)
        made.append("maps")
    assert predictor.is_done(predictor.find())
    return made


def files(store):
    folder = Path(store.path("predictions/run"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(predictor, **sections):
    values = predictor.config.model_dump()
    for name, keys in sections.items():
        values[name] |= keys
    return replace(predictor, config=type(predictor.config).model_validate(values))


def test_what_is_done_is_not_done_again(store, predictor, bundle):
    assert make(predictor, bundle) == ["scores", "maps"]
    assert make(predictor, bundle) == []
    record = predictor.find().scores
    table = pq.read_table(store.path("predictions/run/patches/s1.parquet"))
    assert (record.rows, record.info["num_patches"]) == (table.num_rows, 24)
    assert set(files(store)) == {
        "patches/s1.parquet", "records/s1.json", "records/maps/s1.json",
        "maps/s1_attention.png", "maps/s1_probability.png", "maps/s1_fused.png", "maps/s1_sheet.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["patches/s1.parquet", "maps/s1_attention.png", "maps/s1_fused.png", "records/s1.json", "records/maps/s1.json"],
)
def test_what_is_gone_or_damaged_is_made_again(store, predictor, bundle, name):
    make(predictor, bundle)
    before = files(store)
    path = Path(store.path(f"predictions/run/{name}"))
    generator = np.random.default_rng(0)
    for _ in range(cases(60, full=1000)):
        data = bytearray(before[name])
        data[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        found = predictor.find()
        assert not predictor.is_done(found)
        assert found.is_damaged == (not name.endswith(".json"))
    for damage in (path.unlink, lambda: path.write_bytes(b"garbage")):
        damage()
        made = make(predictor, bundle)
        assert made == (["scores", "maps"] if name in {"patches/s1.parquet", "records/s1.json"} else ["maps"])
        assert files(store) == before


ALL, MAPS = ["scores", "maps"], ["maps"]


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"patch_threshold": 0.9}, ALL),
        ({"slide_thresholds": {"bag": 0.9, "max": 0.5, "topk_mean": 0.5}}, ALL),
        ({"top_k": 1}, ALL),
        ({"classes": ["fine", "bad"]}, ALL),
        ({"weights": 1.5}, ALL),
    ],
)
def test_another_bundle_is_another_answer(store, predictor, bundle, options, made):
    make(predictor, bundle)
    values = bundle.config.model_dump()
    if "top_k" in options:
        values["bags"]["top_k"] = options["top_k"]
    if "classes" in options:
        values["cohort"]["classes"] = options["classes"]
    if "weights" in options:
        with torch.no_grad():
            bundle.heads[0].phi.weight.mul_(options["weights"])
    fields = {key: value for key, value in options.items() if key.endswith(("threshold", "thresholds"))}
    save_bundle(store, replace(bundle, config=type(bundle.config).model_validate(values), **fields))
    other = load_bundle("a-run", store)
    assert other.digest != bundle.digest
    assert make(replace(predictor, bundle=other.digest), other) == made


def test_a_threshold_of_the_bundle_decides(store, predictor, bundle):
    for threshold, predicted in ((0.0, "tumour"), (1.0, "normal")):
        same = dict.fromkeys(bundle.slide_thresholds, threshold)
        record = predictor.score(replace(bundle, slide_thresholds=same, patch_threshold=threshold), embed)
        assert record.info["predicted"] == predicted
        table = pq.read_table(store.path("predictions/run/patches/s1.parquet"))
        assert set(table["predicted"].to_pylist()) == {predicted}


def test_a_calibrated_probability_keeps_the_class_and_the_read_outs(predictor, bundle):
    record = predictor.score(bundle, embed)
    bundle = replace(bundle, temperatures={"bag": 3.0})
    assert predictor.score(bundle, embed).info["probability"] == record.info["probability"]  # not asked for
    asked = changed(predictor, prediction={"calibrated": True})
    info = asked.score(bundle, embed).info
    assert logit(info["probability"]) * 3 == pytest.approx(logit(info["bag"]))
    assert info["probability"] != record.info["probability"]
    assert {name: info[name] for name in (*READ_OUTS, "predicted")} == {
        name: record.info[name] for name in (*READ_OUTS, "predicted")
    }
    temperature = temperature_of(bundle, asked.config.prediction)
    found = shown_threshold(bundle, "bag", temperature=temperature)
    assert logit(found) * 3 == pytest.approx(logit(bundle.slide_thresholds["bag"]))
    reading = reading_of(bundle, info, slide_score="bag", temperature=temperature)
    assert (reading.threshold, reading.probability) == (found, info["probability"])
    other = changed(predictor, prediction={"calibrated": True, "slide_score": "max"})
    info = other.score(bundle, embed).info  # a read-out without a temperature
    assert info["probability"] == info["max"]


def test_calibration_is_another_answer(predictor, bundle):
    make(predictor, bundle)
    assert make(changed(predictor, prediction={"calibrated": True}), bundle) == ALL


def test_another_read_out_is_another_answer(predictor, bundle):
    make(predictor, bundle)
    assert make(changed(predictor, prediction={"slide_score": "max"}), bundle) == ALL


def test_other_embeddings_are_another_answer(store, predictor, bundle):
    make(predictor, bundle)
    entry = replace(predictor.entry, parts=(write_embeddings(store, seed=1),))
    assert make(replace(predictor, entry=entry), bundle) == ALL


@pytest.mark.parametrize("change", ["outline", "label", "no label", "size", "reader", "tiling", "rules"])
def test_what_is_drawn_alone_redraws_the_maps_alone(store, predictor, bundle, change):
    make(predictor, bundle)
    before = files(store)
    if change == "outline":
        path = Path(predictor.slide.annotation_path)
        path.write_text(path.read_text().replace("90", "190"))
        other = replace(predictor, annotation=annotation_version(predictor.slide))
    elif change in {"label", "no label"}:
        other = replace(predictor, entry=replace(predictor.entry, label=0 if change == "label" else None))
    elif change == "tiling":
        other = replace(predictor, patches=replace(predictor.patches, status="failed"))
    else:
        values = {
            "size": {"prediction": {"map_px": 200}},
            "reader": {"tiling": {"reader": "openslide"}},
            "rules": {"labels": {"positive_at": 0.5}},
        }
        other = changed(predictor, **values[change])
    assert make(other, bundle) == MAPS
    after = files(store)
    assert after["patches/s1.parquet"] == before["patches/s1.parquet"]
    assert after["records/s1.json"] == before["records/s1.json"]
    if change in {"outline", "label", "no label"}:
        assert after["maps/s1_fused.png"] != before["maps/s1_fused.png"]


def test_maps_are_made_later_from_the_committed_scores(predictor, bundle):
    assert make(changed(predictor, prediction={"maps": False}), bundle) == ["scores"]
    assert make(predictor, bundle) == ["maps"]


def test_an_embedding_that_is_not_finite_ends_the_slide_in_words(store, predictor, bundle):
    other = replace(predictor, entry=replace(predictor.entry, parts=(write_embeddings(store, value=np.nan),)))
    with pytest.raises(SlideError, match="not finite"):
        other.score(bundle, embed)
    assert not store.exists("predictions/run/records/s1.json")
    large = replace(predictor, entry=replace(predictor.entry, parts=(write_embeddings(store, value=65504),)))
    assert make(large, bundle) == ALL


@pytest.mark.parametrize(
    "name", ["attention_N", "probability_N", "topk_probability_N", "class_probability_NC", "bag_C", None]
)
def test_every_score_must_be_finite(name):
    scores = some_scores(5)
    if name is None:
        check_finite(scores)
        return
    for value in (np.nan, np.inf, -np.inf):
        wrong = getattr(scores, name).copy()
        wrong[-1] = value
        with pytest.raises(SlideError, match="scores are not finite"):
            check_finite(replace(scores, **{name: wrong}))


def test_no_maps_of_other_scores_are_left(store, predictor, bundle):
    make(predictor, bundle)
    other = changed(predictor, prediction={"maps": False, "slide_score": "max"})
    assert make(other, bundle) == ["scores"]
    assert set(files(store)) == {"patches/s1.parquet", "records/s1.json"}


def test_files_of_slides_that_failed_since_go(store, predictor, bundle):
    make(predictor, bundle)
    before = files(store)
    keep_slides(store, "run", {"s1", "s2"})
    assert files(store) == before
    keep_slides(store, "run", {"s2"})
    assert files(store) == {}


def test_doubts_are_kept_with_the_maps_and_tried_again(predictor, bundle):
    slide = replace(predictor.slide, path=f"{predictor.slide.path}.gone", annotation_path="/nowhere/Doe.geojson")
    other = replace(predictor, slide=slide, annotation=annotation_version(slide))
    scores = other.score(bundle, embed)
    doubts = other.draw(scores, bundle).info["doubts"]
    assert [text.partition(":")[0] for text in doubts] == [
        "its maps are drawn on white", "its outlines are not drawn in its maps"
    ]  # fmt: skip
    found = other.find()
    assert (found.maps, found.is_damaged) == (None, False)
    assert make(predictor, bundle) == ["maps"]
    assert predictor.find().maps.info["doubts"] == []
