"""What a stage's worker makes of an exception on one slide: a status, a defect, or the end of everything."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from distmil.bags.bag import BagEntry
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.defects import DEFECT
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.registry import EncoderSpec
from distmil.errors import SlideError, StorageError
from distmil.inference.predictor import Found, SlidePredictor
from distmil.labels.tables import SlideLabeller
from distmil.pipeline import embed, label, predict, tile_report, verify
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.storage.store import Record
from distmil.tiling.tiler import tile_slide
from tests.support.slides import save_pyramid, tissue_image

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
    """Let a stage's work raise, and return what its worker answers."""

    def labels(error):
        monkeypatch.setattr(SlideLabeller, "label", raising(error))
        answer = label._label(label._label_item(SlideLabeller(slide, config, store, patches)))
        return answer | {"failure": answer["record"]}

    def embeds(error):
        monkeypatch.setattr(SlideEmbedder, "write_shard", raising(error))
        monkeypatch.setattr(embed, "load_encoder", lambda *given, **more: None)
        worker = embed._Embedder(
            spec=asdict(SPEC), root=store.root, config=json.dumps(config.model_dump()), is_gpu=False
        )
        return worker(embed._item(SlideEmbedder(patches, config, SPEC, store), patches.parts[0]))

    def draws(error):
        monkeypatch.setattr(tile_report, "draw_slide", raising(error))
        row = {"slide": json.dumps(asdict(slide)), "record": json.dumps(patches.to_json()), "name": "n"}
        return tile_report.Illustrator(config, store, "reports/r")(row)

    def verifies(error):
        monkeypatch.setattr(verify, "find_damage", raising(error))
        return verify.Verifier(config.tiling, store)({"slide": json.dumps(asdict(slide))})

    def predicts(error):
        worker = predict._Judge.__new__(predict._Judge)
        monkeypatch.setattr(worker, "_judge", raising(error), raising=True)
        vars(worker).update(_digest="d", _config=config, _store=store, _run="r")
        entry = BagEntry("s1", 0, "val", False, "f", (), None)
        predictor = SlidePredictor(entry, slide, patches, None, "d", config, store, "r")
        answer = worker(predict._item(predictor, Found(None, None)))
        return answer | {"failure": answer["record"]}

    return {"label": labels, "embed": embeds, "draw": draws, "verify": verifies, "predict": predicts}


STAGES = ["label", "embed", "draw", "verify", "predict"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_unexpected_exception_comes_back_as_a_defect_of_its_slide(ask, stage):
    answer = ask[stage](ZeroDivisionError("oh"))
    record = Record.from_json(json.loads(answer["failure"]))
    assert (record.slide_id, record.status) == ("s1", "failed")
    assert record.info[DEFECT].startswith("ZeroDivisionError: oh (")
    assert answer["fatal"] == ""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [MemoryError("full"), SlideError("3 scores are not finite")])
def test_what_may_happen_to_a_slide_is_its_status(ask, stage, error):
    answer = ask[stage](error)
    record = Record.from_json(json.loads(answer["failure"]))
    assert record.status == "failed"
    assert str(error) in record.error
    assert DEFECT not in record.info


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_cannot_be_used_ends_everything(ask, stage):
    assert ask[stage](StorageError("no space left"))["fatal"] == "no space left"


def test_embeddings_that_are_not_finite_end_their_slide_with_a_reason(monkeypatch, config, store, patches):
    spoilt = SimpleNamespace(embed=lambda images: np.full((len(images), 4), np.nan, np.float32))
    monkeypatch.setattr(embed, "load_encoder", lambda *given, **more: spoilt)
    worker = embed._Embedder(spec=asdict(SPEC), root=store.root, config=json.dumps(config.model_dump()), is_gpu=False)
    answer = worker(embed._item(SlideEmbedder(patches, config, SPEC, store), patches.parts[0]))
    record = Record.from_json(json.loads(answer["failure"]))
    assert record.status == "failed"
    assert record.error.startswith("16 embeddings are not finite")
    assert DEFECT not in record.info


def test_the_answer_counts_the_slides_that_could_not_be_judged(store):
    entries = [BagEntry(name, 0, "val", False, "f", (), None) for name in "abc"]
    prepared = Prepared(entries, {}, {}, {"ok": 3, "unreadable": 1})
    records = {"a": Record("a", {}, status="failed"), "b": Record("b", {}, status="unreadable"), "c": Record("c", {})}
    job = Job(build_config({"tiling": {"max_bad_fraction": 0.9}}), store)
    left = predict._without_failed(job, prepared, records)
    assert left.statuses == {"ok": 1, "unreadable": 2, "failed": 1}
    assert [entry.slide_id for entry in left.entries] == ["c"]
    assert predict._without_failed(job, left, {"c": Record("c", {})}) == left
    assert set(job.ledger.dropped) == {"a", "b"}
