"""What a stage's worker makes of an exception on one slide: a status, a defect, or the end of everything."""

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
from distmil.labels.tables import SlideLabeller
from distmil.pipeline import embed, label, predict, tile, tile_report
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
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
        monkeypatch.setattr(embed, "load_encoder", lambda *given, **more: None)
        return embed._Embedder(config, store, SPEC, is_gpu=False)((patches, 0, patches.parts[0]))

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
    monkeypatch.setattr(embed, "load_encoder", lambda *given, **more: spoilt)
    record = embed._Embedder(config, store, SPEC, is_gpu=False)((patches, 0, patches.parts[0]))
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
    assert set(job.outcomes.dropped) == {"a", "b"}
