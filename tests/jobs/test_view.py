"""What is drawn in the viewer on a job's predictions, and the job `train` that uses it."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import distmil
from distmil.config.loading import build_config
from distmil.pipeline.job import Job
from distmil.pipeline.view.shelf import open_shelf
from distmil.storage.store import Store
from tests.support.jobs import run_here
from tests.support.trained import RUN, make_house

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]
SLIDES = 6
RING = [[100, 100], [900, 100], [900, 700], [100, 700], [100, 100]]


def test_the_next_training_learns_what_was_drawn(tmp_path: Path) -> None:
    home = tmp_path / "home"
    house = make_house(home, num_slides=SLIDES)
    train, val = (distmil.open_bags(house.store.root, run=RUN, split=split) for split in ("train", "val"))
    distmil.fit(train, val=val).save(house.store.path(f"models/{RUN}"))
    manifest = home / f"synthetic/{SLIDES}/manifest.csv"
    given = (f"cohort.manifest={manifest}", f"prediction.model={RUN}", "prediction.run=p")
    done = run_here(home, "predict", *given, "prediction.maps=false", "tracking.uri=none")
    assert done.code == 0, done.err
    config = {"cohort": {"manifest": str(manifest)}, "prediction": {"model": RUN, "run": "p"}}
    shelf = open_shelf(Job(build_config(config), Store(str(home))), is_open=True)
    slide = next(slide for slide in house.cohort.slides if slide.label == 1 and slide.split == "train")
    feature = {"properties": {"name": "positive"}, "geometry": {"type": "Polygon", "coordinates": [RING]}}
    sent = json.dumps({"distmil": {"complete": True}, "features": [feature]}).encode()
    saved = shelf.library().save(f"slide-{slide.slide_id}/outlines.geojson", sent, over=0)
    assert saved is not None
    assert saved.doubts == []
    drawn = manifest.parent / saved.manifest
    done = run_here(
        home, "train", f"cohort.manifest={drawn}", "cohort.val_fraction=0.34", "training.run=second",
        "training.epochs=1", "encoder.name=texture", "tracking.uri=none",
    )  # fmt: skip
    assert done.code == 0, done.err
    bags = distmil.open_bags(str(home), run="second", split="train")
    bag = next(bag for bag in bags if bag.slide_id == slide.slide_id)
    patches = pq.read_table(home / f"predictions/p/patches/{slide.slide_id}.parquet").to_pylist()
    is_marked = [_overlaps(patch["x"], patch["y"], patch["extent_px"]) for patch in patches]
    np.testing.assert_array_equal(bag.label_N, np.array(is_marked).astype(int))
    assert 0 < sum(is_marked) < len(is_marked)


def _overlaps(x: int, y: int, edge: int) -> bool:
    return bool(x < 900 and x + edge > 100 and y < 700 and y + edge > 100)
