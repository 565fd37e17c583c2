"""Slides over Ray: every item is answered once, with what pickle carries, and a failing store ends it all."""

import os

import pytest

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.errors import DamagedStore
from distmil.pipeline import cluster
from distmil.pipeline.cluster import map_slides
from distmil.storage.records import Record

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]


class Worker:
    """Answers a slide with a record, the patch size and the process; the slide s13 finds a damaged store."""

    def __init__(self, *, config: Config, bad: str | None = None) -> None:
        self._config, self._bad = config, bad

    def __call__(self, slide: Slide) -> tuple[Record, int, int]:
        if slide.slide_id == self._bad:
            raise DamagedStore(f"{slide.slide_id}: gone")
        return Record(slide.slide_id, {"label": slide.label}), self._config.tiling.patch_px, os.getpid()


SLIDES = [Slide(f"s{i}", f"/slides/{i}.tif", label=i % 2) for i in range(40)]
CONFIG = build_config({"tiling": {"patch_px": 96}})


def test_every_slide_is_answered_once_and_far_away(monkeypatch):
    monkeypatch.setattr(cluster, "MAX_ACTORS", 1)  # of two cores
    found = list(map_slides(SLIDES, Worker, config=CONFIG))
    assert sorted(slide.slide_id for slide, _ in found) == sorted(slide.slide_id for slide in SLIDES)
    assert all(answer[:2] == (Record(slide.slide_id, {"label": slide.label}), 96) for slide, answer in found)
    (pid,) = {pid for _, (_, _, pid) in found}
    assert pid != os.getpid()
    assert list(map_slides([], Worker, config=CONFIG)) == []


def test_a_failing_store_is_raised_as_it_is():
    with pytest.raises(DamagedStore, match="s13: gone"):
        list(map_slides(SLIDES, Worker, config=CONFIG, bad="s13"))
