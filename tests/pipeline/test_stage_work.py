"""What a stage's worker makes of an exception on one slide: a status, a defect, or the end of everything."""

import io
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console as RichConsole

from distmil.bags.bag import BagEntry
from distmil.cohort import Slide
from distmil.config.loading import build_config, load_config
from distmil.console import Console
from distmil.defects import DEFECT
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.registry import EncoderSpec
from distmil.errors import BadAnnotations, SlideError, StorageError
from distmil.labels.tables import SlideLabeller
from distmil.pipeline import label, predict, prepare, tile, tile_report
from distmil.pipeline.job import Job, Tiled
from distmil.pipeline.prepare import Prepared
from distmil.pipeline.streaming import embedding
from distmil.storage.records import Record
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

VALUES = {"tiling": {"strategy": "crop", "patch_px": 32, "mpp": None, "encode": "png", "chunk_patches": 16}}
SPEC = EncoderSpec("fake", "digest", 4, None)


@pytest.fixture
def config():
    return build_config(VALUES)


@pytest.fixture
def slide(tmp_path):
    return Slide("s1", str(save_pyramid(tmp_path / "slide.tif", tissue_image((300, 170), seed=2))), label=0)


@pytest.fixture
def patches(slide, config, store):
    return tile_slide(slide, config.tiling, store)


def raising(error):
    def work(*given, **more):
        raise error

    return work


@pytest.fixture
def ask(monkeypatch, slide, config, store, patches):
    """Let a stage's work raise, and return the record that its worker answers."""

    def labels(error):
        monkeypatch.setattr(SlideLabeller, "label", raising(error))
        return label._Labeller(config, store)((slide, patches))[0]

    def embeds(error):
        monkeypatch.setattr(SlideEmbedder, "write_shard", raising(error))
        monkeypatch.setattr(embedding, "load_engine", lambda *given, **more: None)
        return embedding.Embedder(config, store, SPEC, {}, is_gpu=False)(embedding.shards_of(patches)[0])

    def draws(error):
        monkeypatch.setattr(tile_report, "draw_slide", raising(error))
        return tile_report._Illustrator(config, store, "reports/r")((slide, patches, "n"))

    def verifies(error):
        monkeypatch.setattr(tile, "find_damage", raising(error))
        return tile._verifier(config.tiling, store)(slide)

    def predicts(error):
        worker = predict._Predictor.__new__(predict._Predictor)
        monkeypatch.setattr(worker, "_predict", raising(error), raising=True)
        vars(worker).update(_digest="d", _config=config, _store=store, _run="r")
        return worker(((BagEntry("s1", 0, "val", False, "f", (), None), slide, patches, None), None))

    return {"label": labels, "embed": embeds, "draw": draws, "verify": verifies, "predict": predicts}


STAGES = ["label", "embed", "draw", "verify", "predict"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_unexpected_exception_comes_back_as_a_defect_of_its_slide(ask, stage):
    record = ask[stage](ZeroDivisionError("oh"))
    assert (record.name, record.status) == ("s1", "failed")
    assert record.info[DEFECT].startswith("ZeroDivisionError: oh (")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [MemoryError("full"), SlideError("3 scores are not finite")])
def test_what_may_happen_to_a_slide_is_its_status(ask, stage, error):
    record = ask[stage](error)
    assert record.status == "failed"
    assert str(error) in record.error
    assert DEFECT not in record.info


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_cannot_be_used_ends_everything(ask, stage):
    with pytest.raises(StorageError, match="no space left"):
        ask[stage](StorageError("no space left"))


def test_embeddings_that_are_not_finite_end_their_slide_with_a_reason(monkeypatch, config, store, patches):
    spoilt = SimpleNamespace(embed=lambda images: np.full((len(images), 4), np.nan, np.float32))
    monkeypatch.setattr(embedding, "load_engine", lambda *given, **more: spoilt)
    record = embedding.Embedder(config, store, SPEC, {}, is_gpu=False)(embedding.shards_of(patches)[0])
    assert record.status == "failed"
    assert record.error.startswith("16 embeddings are not finite")
    assert DEFECT not in record.info


GONE = {
    "missing": (lambda path: path.unlink(), "the slide's file is gone since it was tiled"),
    "failed": (lambda path: os.truncate(path, 5000), "the slide's file is another one than when it was tiled"),
}


@pytest.mark.parametrize("status", GONE)
def test_a_slide_that_went_or_changed_since_it_was_tiled_ends_with_a_reason(monkeypatch, config, store, slide, status):
    monkeypatch.setattr(embedding, "load_engine", lambda *given, **more: None)
    coords = config.model_copy(update={"tiling": config.tiling.model_copy(update={"store": "coords"})})
    shard = embedding.shards_of(tile_slide(slide, coords.tiling, store))[0]
    change, text = GONE[status]
    change(Path(slide.path))
    record = embedding.Embedder(coords, store, SPEC, {"s1": slide}, is_gpu=False)(shard)
    assert (record.name, record.status) == ("s1", status)
    assert record.error.startswith(text)
    assert "/" not in record.error
    assert DEFECT not in record.info


def test_patches_that_were_made_anew_are_not_taken_for_those_asked_for(monkeypatch, config, store, patches):
    monkeypatch.setattr(embedding, "load_engine", lambda *given, **more: None)
    monkeypatch.setattr(embedding, "SEEN_WITHIN_S", 0.0)
    shard = embedding.shards_of(patches)[0]._replace(version="0" * 12)
    record = embedding.Embedder(config, store, SPEC, {}, is_gpu=False)(shard)
    assert record.status == "failed"
    assert "it was tiled anew while it was embedded" in record.error


def test_the_answer_counts_the_slides_that_could_not_be_judged(store):
    entries = [BagEntry(name, 0, "val", False, "f", (), None) for name in "abc"]
    prepared = Prepared(entries, {}, {}, {"ok": 3, "unreadable": 1})
    records = {"a": Record("a", {}, status="failed"), "b": Record("b", {}, status="unreadable"), "c": Record("c", {})}
    job = Job(build_config({"tiling": {"max_bad_fraction": 0.9}}), store)
    left = predict._without_failed(job, prepared, records)
    assert left.statuses == {"ok": 1, "unreadable": 2, "failed": 1}
    assert [entry.slide_id for entry in left.entries] == ["c"]
    assert predict._without_failed(job, left, {"c": Record("c", {})}) == left
    assert set(job.outcomes.dropped) == {"a", "b"}


@pytest.fixture
def here(monkeypatch):
    """Run the workers of labelling and drawing in this process."""

    def in_process(items, worker, **arguments):
        work = worker(**arguments)
        return [(item, work(item)) for item in items]

    monkeypatch.setattr(label, "map_slides", in_process)
    monkeypatch.setattr(tile_report, "map_slides", in_process)


@pytest.fixture
def annotated(tmp_path, slide):
    """Two slides whose annotations cannot be used, and one without."""
    (tmp_path / "a.json").write_text('{"images": [], "annotations": []}')
    spoilt = replace(slide, label=1, annotation_path=str(tmp_path / "a.json"))
    return [replace(spoilt, slide_id="b1"), replace(spoilt, slide_id="b2"), slide]


def job_with(store, choice):
    values = VALUES | {"labels": {"on_bad_annotation": choice}}
    return Job(build_config(values), store, Console(RichConsole(file=io.StringIO(), soft_wrap=True)))


@pytest.mark.usefixtures("here")
def test_bad_annotations_end_labelling_only_where_that_is_wanted(annotated, store, config):
    records = {slide.slide_id: tile_slide(slide, config.tiling, store) for slide in annotated}
    found = label.label(job_with(store, "skip"), annotated, records)
    assert {i: record.status for i, record in found.items()} == {
        "b1": "bad_annotation",
        "b2": "bad_annotation",
        "s1": "ok",
    }
    with pytest.raises(BadAnnotations, match=r"annotations of 2 slides cannot be used .*\n  2 \(b1, b2\): .*COCO JSON"):
        label.label(job_with(store, "fail"), annotated, records)
    kept = label.label(job_with(store, "label_only"), annotated, records)
    assert {record.status for record in kept.values()} == {"ok"}


@pytest.mark.usefixtures("here")
def test_bad_annotations_end_a_training_before_anything_is_embedded(monkeypatch, annotated, store, config):
    tiled = Tiled({slide.slide_id: tile_slide(slide, config.tiling, store) for slide in annotated})
    monkeypatch.setattr(prepare, "tile", lambda *given: tiled)
    monkeypatch.setattr(prepare, "tile_ahead", lambda *given: (tiled, {}))
    monkeypatch.setattr(prepare, "embed", raising(AssertionError("embedded")))
    with pytest.raises(BadAnnotations):
        prepare.prepare(job_with(store, "fail"), annotated, SPEC, with_labels=True)
    with pytest.raises(AssertionError, match="embedded"):
        prepare.prepare(job_with(store, "skip"), annotated, SPEC, with_labels=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("skip", "annotations of 2 slides cannot be used, the job's end says why: train leaves these slides out"),
        ("label_only", "annotations of 2 slides cannot be used, the job's end says why: train uses these slides by"),
    ],
)
def test_tiling_says_which_annotations_cannot_be_used(annotated, store, config, choice, said):
    job = job_with(store, choice)
    tiled = Tiled({slide.slide_id: tile_slide(slide, config.tiling, store) for slide in annotated})
    for _ in range(2):  # pictures that are there are not drawn again, and what they lack is still said
        folder, unusable = tile_report.write_report(job, annotated, tiled)
        assert sorted(unusable) == ["b1", "b2"]
    tile_report.say_unusable(job, unusable)
    assert said in job.console.rich.file.getvalue()
    assert all("its annotation cannot be used" in job.outcomes.doubts[i][0] for i in ("b1", "b2"))
    assert "2 x its annotation cannot be used" in without_tags(store.read(f"{folder}/summary.html").decode())
    with pytest.raises(BadAnnotations, match="COCO JSON") as caught:
        tile_report.say_unusable(job_with(store, "fail"), unusable)
    assert caught.value.exit_code == 2


def without_tags(page):
    return " ".join(re.sub(r"<[^>]*>", "", page).split())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("suffix", "strategy", "shows"), [("png", "crop", False), ("png", "foreground", True)])
def test_the_tissue_of_plain_images_is_shown_only_where_it_chooses_patches(tmp_path, store, suffix, strategy, shows):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(tissue_image((300, 170), seed=2)).save(path)
    job = Job(build_config({"tiling": VALUES["tiling"] | {"strategy": strategy}}), store)
    slide = Slide("a", str(path))
    tiled = Tiled({"a": tile_slide(slide, job.config.tiling, store)})
    folder, _ = tile_report.write_report(job, [slide], tiled)
    assert (store.read_json(f"{folder}/summary.json")["slides"][0]["tissue_share"] is not None) is shows
    picture = store.read(f"{folder}/{store.read_json(f'{folder}/summary.json')['slides'][0]['picture']}")
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    green = np.abs(pixels - (0, 168, 84)).sum(axis=2) < 60
    assert green.any() == shows


def test_groups_without_a_meaning_come_with_the_setting_that_gives_them_one(store):
    job = job_with(store, "skip")
    tile_report.say_unknown_groups(job, ["car", "it's: odd"])
    said = job.console.rich.file.getvalue()
    assert "annotations: groups 'car', \"it's: odd\" are not in labels.groups;" in said
    (word,) = shlex.split(said.partition("ignore or nothing): ")[2].partition(" (the names")[0])
    assert set(load_config(None, [word.replace("...", "exclude")]).labels.groups) == {"car", "it's: odd"}
