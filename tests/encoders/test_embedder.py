"""Embedding shards: one per patch shard, resumed where it stopped, and never a number that is none."""

import numpy as np
import pytest

from distmil.bags.bag import BagEntry, Shards, open_bag, open_source
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.encoders.embedder import SlideEmbedder, embeddings_folder
from distmil.encoders.registry import EncoderSpec
from distmil.errors import SlideError, StorageError
from distmil.tiling.pixels import open_pixels
from distmil.tiling.shards import decode_image, patches_folder, read_patches
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

CONFIG = build_config(
    {
        "tiling": {"strategy": "crop", "patch_px": 32, "mpp": None, "encode": "png", "chunk_patches": 16},
        "encoder": {"batch_size": 5},
    }
)
SPEC = EncoderSpec("fake", "digest", 4, None)


class Fake:
    """Embeds a patch as its mean colour and its first red value, counts patches, and spoils some on demand."""

    def __init__(self, spoil=None):
        self.num_seen = 0
        self.spoil = spoil or {}

    def embed(self, images_NHWC):
        embedding = np.empty((len(images_NHWC), 4), np.float32)
        embedding[:, :3] = images_NHWC.mean(axis=(1, 2)) / 255
        embedding[:, 3] = images_NHWC[:, 0, 0, 0] / 255
        for i in range(len(embedding)):
            embedding[i, 2] = self.spoil.get(self.num_seen + i, embedding[i, 2])
        self.num_seen += len(images_NHWC)
        return embedding


@pytest.fixture
def patches(tmp_path, store):
    path = save_pyramid(tmp_path / "slide.tif", tissue_image((300, 170), seed=2))
    return tile_slide(Slide("s1", str(path)), CONFIG.tiling, store)


@pytest.fixture
def embedder(patches, store):
    return SlideEmbedder(patches, CONFIG, SPEC, store)


def run(embedder, encoder):
    return embedder.commit([embedder.write_shard(part, encoder) for part in embedder.patches.parts])


def test_every_patch_has_its_own_embedding_in_the_grids_order(embedder, patches, store):
    record = run(embedder, Fake())
    assert [part.rows for part in record.parts] == [part.rows for part in patches.parts] == [16, 16, 13]
    source, places = open_source(store, BagEntry("s1", 1, "train", False, embedder.folder, record.parts, None))
    at = 0
    for part in patches.parts:
        table = read_patches(store, f"{patches_folder(CONFIG.tiling)}/s1/{part.name}")
        for x, y, data in zip(*(table[name].to_pylist() for name in ("x", "y", "image")), strict=True):
            image = decode_image(data)
            expected = [*image.mean(axis=(0, 1)) / 255, image[0, 0, 0] / 255]
            np.testing.assert_allclose(source.take(np.array([at]))[0], expected, atol=1e-3)
            assert (places["x"][at].as_py(), places["y"][at].as_py()) == (x, y)
            at += 1
    assert at == len(source) == 45


def test_a_broken_off_slide_goes_on_where_it_stopped(embedder):
    embedder.write_shard(embedder.patches.parts[0], Fake())
    encoder = Fake()
    assert embedder.finished() is None
    record = run(embedder, encoder)
    assert encoder.num_seen == 45 - 16
    assert embedder.finished() == record
    assert embedder.store.names(embedder.folder) == ["commit.json", *(part.name for part in record.parts)]


def test_embeddings_of_other_patches_are_not_reused(embedder, tmp_path, store):
    first = run(embedder, Fake())
    embedder.write_shard(embedder.patches.parts[0], Fake())
    path = save_pyramid(tmp_path / "slide.tif", tissue_image((300, 170), seed=3))
    other = SlideEmbedder(tile_slide(Slide("s1", str(path)), CONFIG.tiling, store), CONFIG, SPEC, store)
    assert other.finished() is None
    encoder = Fake()
    second = run(other, encoder)
    assert encoder.num_seen == 45
    assert second.digest != first.digest


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_shards_do_not_depend_on_the_batch(embedder, batch_size, store):
    first = run(embedder, Fake())
    config = CONFIG.model_copy(update={"encoder": CONFIG.encoder.model_copy(update={"batch_size": batch_size})})
    assert embeddings_folder(config, SPEC) == embeddings_folder(CONFIG, SPEC)
    store.delete(embedder.committed.record_name)
    assert run(SlideEmbedder(embedder.patches, config, SPEC, store), Fake()) == first


@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])
def test_an_embedding_that_is_no_number_is_refused_and_counted(embedder, value):
    # 70,000 is a number, but none of half precision
    encoder = Fake(spoil={3: value, 11: value})
    with pytest.raises(SlideError, match=r"2 embeddings are not finite in half precision, the first of patch 3"):
        embedder.write_shard(embedder.patches.parts[0], encoder)
    assert embedder.store.names(embedder.folder) == []


def test_a_commit_needs_every_shard(embedder):
    parts = [embedder.write_shard(part, Fake()) for part in embedder.patches.parts]
    for some in (parts[1:], [], [*parts, parts[0]]):
        with pytest.raises(StorageError, match="s1"):
            embedder.commit(some)
    assert embedder.finished() is None
    assert embedder.commit(parts).ok


@pytest.mark.parametrize(
    ("config", "spec", "is_same"),
    [
        (CONFIG, EncoderSpec("fake", "other", 4, None), False),
        (CONFIG, EncoderSpec("other", "digest", 4, None), False),
        (CONFIG, EncoderSpec("fake", "digest", 4, "encoders/moved.safetensors"), True),
        (build_config({"tiling": {"patch_px": 64}}), SPEC, False),
        (build_config(CONFIG.model_dump() | {"labels": {"positive_at": 0.5}}), SPEC, True),
    ],
)
def test_embeddings_get_another_folder_where_they_would_differ(config, spec, is_same):
    assert (embeddings_folder(config, spec) == embeddings_folder(CONFIG, SPEC)) is is_same


def test_a_damaged_embedding_shard_is_found_before_it_is_used(embedder, store, patches):
    record = run(embedder, Fake())
    name = f"{embedder.folder}/{record.parts[1].name}"
    entry = BagEntry("s1", 1, "train", False, embedder.folder, record.parts, None)
    whole = store.read(name)
    for damaged in (whole[:-10], whole + b"x", b""):
        store.write(name, damaged)
        with pytest.raises(StorageError, match="part-00001"):
            open_source(store, entry)
    store.write(name, whole)
    assert len(open_source(store, entry)[0]) == patches.rows


def test_a_view_is_another_folder_of_the_same_patches_with_shifted_stains(embedder, store, patches):
    plain = run(embedder, Fake())
    views = [SlideEmbedder(patches, CONFIG, SPEC, store, view) for view in (1, 2)]
    records = [run(view, Fake()) for view in views]
    assert len({embedder.folder, *(view.folder for view in views)}) == 3
    assert embedder.finished() == plain
    shards = [Shards(view.folder, record.parts) for view, record in zip(views, records, strict=True)]
    entry = BagEntry("s1", 1, "train", False, embedder.folder, plain.parts, None, shards)
    bag = open_bag(store, entry, num_classes=2, form="class")
    seen = [np.asarray(bag.seen(view).take(slice(None)), np.float32) for view in range(3)]
    assert [found.shape for found in seen] == [(45, 4)] * 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 0.01 < np.abs(seen[one] - seen[other])[:, :3].mean() < 0.2
    shift = (seen[1] - seen[0])[:, :3].mean(axis=1)
    assert shift.std() > 0.01  # each patch is shifted by itself


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_patchs_shift_does_not_depend_on_the_batch(embedder, batch_size, store):
    view = SlideEmbedder(embedder.patches, CONFIG, SPEC, store, 3)
    first = run(view, Fake())
    config = CONFIG.model_copy(update={"encoder": CONFIG.encoder.model_copy(update={"batch_size": batch_size})})
    store.delete(view.committed.record_name)
    assert run(SlideEmbedder(embedder.patches, config, SPEC, store, 3), Fake()) == first


def test_another_spread_of_stains_is_another_folder_of_views_alone():
    config = build_config(CONFIG.model_dump() | {"encoder": {"stain_shift": 0.3, "views": 2}})
    assert embeddings_folder(config, SPEC) == embeddings_folder(CONFIG, SPEC)
    assert embeddings_folder(config, SPEC, view=1) != embeddings_folder(CONFIG, SPEC, view=1)


def stored_as(kind):
    tiling = CONFIG.tiling.model_copy(update={"store": kind})
    return CONFIG.model_copy(update={"tiling": tiling})


@pytest.mark.parametrize("view", [0, 2])
def test_pixels_out_of_the_slide_embed_as_stored_ones(tmp_path, store, view):
    path = save_pyramid(tmp_path / "slide.tif", tissue_image((300, 170), seed=2))
    slide, made = Slide("s1", str(path)), {}
    for kind in ("image", "coords"):
        config = stored_as(kind)
        patches = tile_slide(slide, config.tiling, store)
        embedder, encoder = SlideEmbedder(patches, config, SPEC, store, view), Fake()
        parts = []
        for part in patches.parts:
            pixels = open_pixels(slide, patches, config.tiling) if kind == "coords" else None
            parts.append(embedder.write_shard(part, encoder, pixels=pixels))
        record = embedder.commit(parts)
        made[kind] = [store.read_part(embedder.folder, part) for part in record.parts]
    assert made["image"] == made["coords"]
    assert embeddings_folder(stored_as("image"), SPEC) != embeddings_folder(stored_as("coords"), SPEC)
