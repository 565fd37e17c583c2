"""The rounds of tiling, without Ray: whole slides, the chunks that are left, what vanished, and what is damaged."""

import pickle
from collections import Counter
from pathlib import Path

import pytest

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.errors import DamagedStore, StorageError
from distmil.pipeline import tile
from distmil.pipeline.job import Job
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.worker import Answer, SlideWorker, do_step
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

VALUES = {"strategy": "crop", "patch_px": 32, "mpp": None, "encode": "png", "chunk_patches": 16}


@pytest.fixture
def slides(tmp_path):
    sizes = {"large": (700, 400), "small": (70, 40)}
    return [
        Slide(name, str(save_pyramid(tmp_path / f"{name}.tif", tissue_image(size, seed=1))))
        for name, size in sizes.items()
    ]


@pytest.fixture
def job(store):
    return Job(build_config({"tiling": VALUES}), store)


@pytest.fixture
def rounds(monkeypatch):
    """Run workers in this process, in the reverse order, without a child; return the chunks asked for in each round."""
    seen = []

    def in_process(items, worker, **arguments):
        items = pickle.loads(pickle.dumps(list(items)))
        if items and isinstance(items[0], tuple):
            seen.append(Counter(chunk for _, chunk in items))
        work = worker(**arguments)
        return [(item, pickle.loads(pickle.dumps(work(item)))) for item in reversed(items)]

    def step(self, slide, chunk):
        return do_step(SlideTiler(slide, self._config, self._store), chunk)

    monkeypatch.setattr(SlideWorker, "step", step)
    monkeypatch.setattr(tile, "map_slides", in_process)
    monkeypatch.setattr(tile, "start_ray", lambda: None)
    monkeypatch.setattr(tile, "cluster_resources", lambda: {"CPU": 2})
    return seen


def test_the_chunks_of_a_large_slide_are_shared_out_after_the_whole_slides(job, slides, rounds, monkeypatch, tmp_path):
    monkeypatch.setattr(tile, "MOST_CHUNKS", 3)
    monkeypatch.setattr(tile, "WINDOW", 8)
    found = tile.tile(job, slides)
    assert {name: record.rows for name, record in found.records.items()} == {"large": 252, "small": 2}
    assert rounds == [{None: 2}, dict.fromkeys(range(3, 11), 1), dict.fromkeys(range(11, 16), 1)]
    assert set(found.seconds) == {"large", "small"}
    other = type(job.store)(str(tmp_path / "alone"))
    assert found.records["large"].parts == tile_slide(slides[0], job.config.tiling, other).parts
    assert tile.tile(job, slides).seconds == {}
    assert len(rounds) == 3


def test_a_shard_that_vanishes_meanwhile_is_made_once_more(job, slides, rounds, monkeypatch):
    monkeypatch.setattr(tile, "MOST_CHUNKS", 3)
    tiler = SlideTiler(slides[0], job.config.tiling, job.store)
    step = SlideWorker.step

    def clean(self, slide, chunk):
        if chunk == 3 and not tiler.committed.read() and len(rounds) == 2:
            for name in ("part-00001.parquet", "part-00001.json"):
                job.store.delete(f"{tiler.folder}/{name}")
        return step(self, slide, chunk)

    monkeypatch.setattr(SlideWorker, "step", clean)
    assert tile.tile(job, slides).records["large"].rows == 252
    assert rounds[-1] == {None: 1}


def test_a_store_that_fails_ends_the_job(job, slides, rounds, monkeypatch):
    monkeypatch.setattr(SlideWorker, "step", lambda *_: Answer(fatal="the disk is full"))
    with pytest.raises(StorageError, match="the disk is full"):
        tile.tile(job, slides)


def test_damage_is_named_and_then_repaired(job, slides, rounds):
    record = tile.tile(job, slides).records["large"]
    assert tile.verify(job, slides) == 0
    part = Path(job.store.path(SlideTiler(slides[0], job.config.tiling, job.store).folder)) / record.parts[5].name
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(DamagedStore, match=r"1 of 2 slides are damaged; tiling\.verify=repair tiles them again"):
        tile.verify(job, slides)
    repairing = Job(build_config({"tiling": VALUES | {"verify": "repair"}}), job.store)
    assert tile.verify(repairing, slides) == 1
    assert tile.tile(repairing, slides).records["large"] == record
    assert part.read_bytes() == whole
