"""A slide's features in the store: the contracts of its own patches and embeddings, without a pixel."""

import os
import shutil

import numpy as np
import pytest

from distmil.bags.bag import BagEntry, open_bag
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.encoders.embedder import embeddings_folder
from distmil.errors import ReplacedSlide, SlideError, UnreadableSlide
from distmil.features.agreement import read_headers, settle
from distmil.features.finding import FeatureFile, open_folder
from distmil.features.importer import SlideImporter
from distmil.features.spec import features_spec
from distmil.labels.tables import SlideLabeller
from tests.support.feature_files import random_features, write_stamp, write_trident
from tests.support.scale import cases
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import contents


@pytest.fixture
def made():
    rng = np.random.default_rng(11)
    xy = np.array([[256 * i, 256 * (i % 5)] for i in range(40)])
    return random_features(rng, xy=xy, features=rng.normal(size=(40, 7)).astype(np.float32), extent_px=256,
                           patch_px=256, overlap_px=0, mpp=0.5, size=(10300, 1400))  # fmt: skip


def importer_of(folder, store, slide, **values) -> SlideImporter:
    config = build_config({"features": {"folder": str(folder)}, "tiling": {"chunk_patches": 16}, **values})
    found = open_folder(config.features)
    config = settle(config, read_headers([slide], found, config.features))
    return SlideImporter(slide, found.find(slide), config, store)


def bag_of(importer, record, labels=None):
    folder = f"{embeddings_folder(importer.config, features_spec(importer.config.features))}/{record.name}"
    table, part = (labels.table_name, labels.finished().parts[0]) if labels else (None, None)
    entry = BagEntry(record.name, 1, "train", False, folder, tuple(record.parts), table, labels_part=part)
    return open_bag(importer.store, entry, num_classes=2, form="class")


def test_a_plan_says_what_the_import_makes_and_writes_nothing(store, tmp_path):
    rng = np.random.default_rng(5)
    for number in range(cases(5, full=100)):
        places = np.array([[256 * i, 256 * (i % 7)] for i in range(700)])
        width = int(rng.integers(1, 200))
        made = random_features(rng, slide_id=f"s{number}" * int(rng.integers(1, 6)), xy=places, patch_px=256,
                               features=rng.normal(size=(700, width)), extent_px=256, overlap_px=0, mpp=0.5,
                               size=(190_000, 2000))  # fmt: skip
        slide = Slide(made.slide_id, "", mpp=made.mpp)
        folder = write_trident(made, tmp_path / str(number))
        importer = importer_of(folder, store, slide, tiling={"chunk_patches": 1024})
        before = contents(store.root)
        planned = importer.plan()
        assert contents(store.root) == before
        found = importer.make()
        written = sum(map(len, contents(store.root).values())) - sum(map(len, before.values()))
        assert planned.num_bytes == pytest.approx(written, rel=0.1, abs=12_000)  # of headers and records
        assert (planned.layout, planned.num_patches, planned.is_done) == ("trident", found.embeddings.rows, False)
        assert (planned.mpp, planned.doubts) == (found.patches.info["mpp"], tuple(found.patches.info["doubts"]))
        for file in importer.file.files:  # as after a copy
            os.utime(file, ns=(1, 1))
        before = contents(store.root)
        again = importer.plan()
        assert contents(store.root) == before
        assert (again.num_patches, again.num_bytes, again.is_done) == (700, 0, True)
        assert importer.finished() is not None
        assert contents(store.root) != before


def test_grids_and_embeddings_are_those_of_the_file(store, tmp_path):
    rng = np.random.default_rng(4)
    for number in range(cases(10, full=300)):
        made = random_features(rng, slide_id=f"s{number}")
        slide = Slide(made.slide_id, "", mpp=made.mpp)
        importer = importer_of(write_trident(made, tmp_path / str(number)), store, slide)
        found = importer.make()
        bag = bag_of(importer, found.embeddings)
        assert np.array_equal(bag.source.take(slice(None)), made.features.astype(np.float16))
        assert found.patches.rows == found.embeddings.rows == len(made.xy)
        assert [part.rows for part in found.embeddings.parts][:-1] == [16] * (len(found.embeddings.parts) - 1)
        info = found.patches.info
        assert (info["width_px"], info["height_px"], info["extent_px"]) == (*made.size, made.extent_px)
        assert importer.finished() == found


def test_outlines_label_the_imported_grid(store, made, tmp_path):
    (tmp_path / "a.geojson").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"classification": '
        '{"name": "Tumor"}}, "geometry": {"type": "Polygon", "coordinates": '
        "[[[0, 0], [520, 0], [520, 400], [0, 400], [0, 0]]]}}]}"
    )
    slide = Slide("s1", "", label=1, mpp=0.5, annotation_path=str(tmp_path / "a.geojson"), annotation_complete=True)
    importer = importer_of(write_trident(made, tmp_path / "f"), store, slide)
    found = importer.make()
    labeller = SlideLabeller(slide, importer.config, store, found.patches)
    assert labeller.label().ok
    bag = bag_of(importer, found.embeddings, labeller)
    covered = (made.xy[:, 0] < 520) & (made.xy[:, 1] < 400)
    assert np.array_equal(bag.label_N == 1, covered)


def test_the_slide_itself_gives_size_and_resolution(store, made, tmp_path):
    path = save_pyramid(tmp_path / "slide.tif", tissue_image((900, 500), seed=3), mpp=0.5)
    small = made.but(xy=made.xy[:2], features=made.features[:2])
    importer = importer_of(write_stamp(small, tmp_path / "f"), store, Slide("s1", str(path)))
    found = importer.make()
    assert (found.patches.info["width_px"], found.patches.info["height_px"]) == (900, 500)
    assert found.patches.info["mpp"] == pytest.approx(0.5)
    far = importer_of(write_stamp(made, tmp_path / "g"), store, Slide("s1", str(path)))
    with pytest.raises(UnreadableSlide, match="outside the slide of 900 x 500 px"):
        far.make()


def test_a_slide_that_is_not_here_is_a_doubt(store, made, tmp_path):
    importer = importer_of(write_trident(made, tmp_path), store, Slide("s1", str(tmp_path / "gone.svs"), mpp=0.5))
    (doubt,) = importer.make().patches.info["doubts"]
    assert "not compared with its slide" in doubt


def test_done_means_these_files_and_these_settings(store, made, tmp_path):
    folder = write_trident(made, tmp_path)
    slide = Slide("s1", "", mpp=0.5)
    importer = importer_of(folder, store, slide)
    assert importer.finished() is None
    found = importer.make()
    os.utime(folder / "s1.h5", ns=(1, 1))  # copied, or touched
    assert importer.finished().embeddings.parts == found.embeddings.parts
    assert importer_of(folder, store, Slide("s1", "", mpp=0.51)).finished() is None
    write_trident(made.but(features=made.features + 1), tmp_path)
    assert importer.finished() is None
    changed = importer.make()
    assert changed.embeddings.parts != found.embeddings.parts
    assert changed.patches.digest == found.patches.digest
    shutil.rmtree(folder)
    assert importer.finished() is None


def test_features_that_fail_leave_nothing_that_counts(store, made, tmp_path):
    bad = made.features.copy()
    bad[39] = np.nan  # in the last of three shards
    importer = importer_of(write_trident(made.but(features=bad), tmp_path), store, Slide("s1", "", mpp=0.5))
    with pytest.raises(SlideError, match="the embedding of patch 39 is not finite"):
        importer.make()
    assert importer.finished() is None
    assert importer.embeddings.read() is None


def test_a_file_that_is_replaced_while_it_is_read_is_told(store, made, tmp_path, monkeypatch):
    importer = importer_of(write_trident(made, tmp_path), store, Slide("s1", "", mpp=0.5))
    versions = iter([{"size_bytes": 1, "mtime_ns": 1}, {"size_bytes": 1, "mtime_ns": 2}])
    monkeypatch.setattr(FeatureFile, "version", lambda file: next(versions))
    with pytest.raises(ReplacedSlide, match="replaced while it was read"):
        importer.make()
