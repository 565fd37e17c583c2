"""Pixels that stay in the slide: the same as stored ones, and never those of another file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import MissingSlide, ReplacedSlide, SlideError, UnreadableSlide
from distmil.storage.store import Store
from distmil.tiling.pixels import open_pixels
from distmil.tiling.plan import open_reading, plan_tiling
from distmil.tiling.shards import patches_folder, read_patches, shard_schema
from distmil.tiling.tiler import seen_images
from distmil.tiling.verification import find_damage
from tests.support.jpeg_tiff import RGB, YCBCR, save_jpeg_tiff
from tests.support.scale import cases
from tests.support.slides import save_image, save_pyramid, tissue_image
from tests.support.tiles import images_of, patches_of, tile_slide


def random_slide(folder, rng):
    """Save a slide of any kind: plain, lossless pyramid, or JPEG tiles with a scanner's traps."""
    size = tuple(int(edge) for edge in rng.integers(150, 420, 2))
    pixels = tissue_image(size, seed=int(rng.integers(1000)))
    kind = rng.choice(["png", "pyramid", "jpeg", "jpeg", "jpeg"])
    downsamples = [(1,), (1, 2)][rng.integers(2)]
    if kind == "png":
        return Slide("s1", str(save_image(folder / "a.png", pixels)), mpp=0.5)
    if kind == "pyramid":
        return Slide("s1", str(save_pyramid(folder / "a.tif", pixels, mpp=0.5, downsamples=downsamples)))
    photometric = [YCBCR, RGB][rng.integers(2)]
    edge = int(rng.choice([32, 64]))
    save_jpeg_tiff(
        folder / "a.tif", pixels, tile=(edge, edge), mpp=0.5, downsamples=downsamples, photometric=photometric,
        subsampling=[(1, 1), (2, 1), (2, 2)][rng.integers(3)], has_tables=bool(rng.integers(2)),
        missing=[(0, 1)] if len(downsamples) == 1 and rng.random() < 0.3 else (),
    )  # fmt: skip
    return Slide("s1", str(folder / "a.tif"))


def random_tiling(rng, **values):
    return TilingConfig(
        patch_px=int(rng.choice([32, 48, 64, 64])), stride_px=[None, None, None, 40][rng.integers(4)],
        mpp=[0.5, 0.5, 1.0, 0.8][rng.integers(4)], strategy=str(rng.choice(["crop", "pad", "foreground"])),
        reduce=str(rng.choice(["area", "dct"])), chunk_patches=16, **values,
    )  # fmt: skip


def read_all(slide, config, store, record):
    folder = f"{patches_folder(config)}/{record.name}"
    with open_pixels(slide, record, config) as read:
        tables = [read_patches(store, f"{folder}/{part.name}", schema=shard_schema(config)) for part in record.parts]
        return [image for table in tables for image in read(table)]


@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_pixels_of_the_slide_are_those_that_are_stored_without_loss(tmp_path, seed):
    """As PNG every patch; under `reuse` every tile of the file that is taken over."""
    rng = np.random.default_rng(seed)
    slide = random_slide(tmp_path, rng)
    config, store = random_tiling(rng, encode="png"), Store(str(tmp_path / "store"))
    stored, coords = (config.model_copy(update={"store": kind}) for kind in ("image", "coords"))
    one, two = tile_slide(slide, stored, store), tile_slide(slide, coords, store)
    assert (one.status, one.error, one.rows) == (two.status, two.error, two.rows)
    if not one.ok:
        return
    first, again = images_of(patches_of(store, stored, one)), read_all(slide, coords, store, two)
    assert all(map(np.array_equal, first, again))
    assert len(first) == len(again) == one.rows
    reused = stored.model_copy(update={"encode": "reuse"})
    three = tile_slide(slide, reused, store)
    table = patches_of(store, reused, three)
    if three.info["reused"] and not three.info["blank"]:
        ends = [table[name].to_numpy() + table["extent_px"].to_numpy() for name in ("x", "y")]
        whole = (ends[0] <= three.info["width_px"]) & (ends[1] <= three.info["height_px"])
        copied = images_of(table)
        assert all(np.array_equal(copied[i], again[i]) for i in np.flatnonzero(whole))
    assert sum(part.size_bytes for part in two.parts) < 0.2 * sum(part.size_bytes for part in one.parts)


def test_the_same_pixels_are_read_in_any_order_and_number(tmp_path, store):
    slide = Slide("s1", str(save_jpeg_tiff(tmp_path / "a.tif", tissue_image((300, 170), seed=3), mpp=0.5)))
    config = TilingConfig(patch_px=48, stride_px=20, mpp=1.0, strategy="crop", store="coords")
    record = tile_slide(slide, config, store)
    (part,) = record.parts
    table = read_patches(store, f"{patches_folder(config)}/s1/{part.name}", schema=shard_schema(config), part=part)
    with open_pixels(slide, record, config) as read:
        whole = read(table)
        order = np.random.default_rng(0).permutation(table.num_rows)
        np.testing.assert_array_equal(read(table.take(order)), whole[order])
        np.testing.assert_array_equal(read(table.slice(3, 1)), whole[3:4])


@pytest.mark.parametrize("kind", ["image", "coords"])
def test_a_slide_without_a_store_is_seen_as_its_stored_patches(tmp_path, store, kind):
    """Whole tiles of the file, and patches that are encoded again, which JPEG changes."""
    slide = Slide("s1", str(save_jpeg_tiff(tmp_path / "a.tif", tissue_image((300, 170), seed=3), mpp=0.5)))
    for patch_px in (64, 48):
        config = TilingConfig(patch_px=patch_px, mpp=0.5, strategy="pad", store=kind)
        record = tile_slide(slide, config, store)
        plan = plan_tiling(slide, config)
        with open_reading(slide, plan.reading, reader="auto", size=(300, 170)) as image:
            seen = seen_images(plan.grid, image=image, reading=plan.reading, config=config)
        stored = images_of(patches_of(store, config, record)) if kind == "image" else None
        np.testing.assert_array_equal(seen, stored or read_all(slide, config, store, record))


@pytest.fixture
def tiled(tmp_path, store):
    """A slide of JPEG tiles, tiled without its pixels."""
    slide = Slide("s1", str(save_jpeg_tiff(tmp_path / "case of Jane Doe.tif", tissue_image((700, 300)), mpp=0.5)))
    config = TilingConfig(patch_px=64, strategy="crop", chunk_patches=16, store="coords")
    record = tile_slide(slide, config, store)
    assert record.ok
    return slide, config, record


def test_shards_that_lie_without_pixels_are_other_patches(tiled, store):
    slide, config, record = tiled
    assert "store" not in TilingConfig().identity()  # folders that are there keep their names
    assert patches_folder(config) != patches_folder(config.model_copy(update={"store": "image"}))
    other = save_jpeg_tiff(Path(slide.path).with_name("b.tif"), tissue_image((700, 300), seed=1), mpp=0.5)
    again = tile_slide(Slide("s2", str(other)), config, store)
    assert [part.rows for part in again.parts] == [part.rows for part in record.parts]
    assert again.digest != record.digest


def refuse(tiled, store, error, match):
    """Read every patch, which must fail without naming the file; find the damage by verification, too."""
    slide, config, record = tiled
    with pytest.raises(error, match=match) as caught:
        read_all(slide, config, store, record)
    assert "Jane" not in str(caught.value)
    (said,) = find_damage(slide, config, store)[-1:]
    assert "Jane" not in said


def test_a_slide_that_is_gone_is_missing(tiled, store):
    slide, config, record = tiled
    shutil.move(slide.path, f"{slide.path}.old")
    with pytest.raises(MissingSlide, match="gone since it was tiled, and its pixels are nowhere else") as caught:
        read_all(slide, config, store, record)
    assert "Jane" not in str(caught.value)
    shutil.move(f"{slide.path}.old", slide.path)
    assert len(read_all(slide, config, store, record)) == record.rows
    assert find_damage(slide, config, store) == []


def test_another_file_under_the_name_is_refused(tiled, store):
    save_jpeg_tiff(Path(tiled[0].path), tissue_image((700, 300), seed=1), mpp=0.5)
    refuse(tiled, store, ReplacedSlide, "another one than when it was tiled; run the same command again")


def test_other_pixels_behind_the_same_size_and_time_are_found_by_their_checksums(tiled, store):
    """Two tiles of the file exchange their entries: both decode, and neither is where it was."""
    slide, _, _ = tiled
    before = Path(slide.path).stat()
    with tifffile.TiffFile(slide.path, mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            values = list(file.pages[0].tags[name].value)
            values[2], values[3] = values[3], values[2]
            file.pages[0].tags[name].overwrite(tuple(values))
    os.utime(slide.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refuse(tiled, store, ReplacedSlide, r"the patch at x = \d+, y = \d+ has other pixels than when the slide was tiled")


def test_a_slide_that_was_cut_off_is_refused(tiled, store):
    slide, _, _ = tiled
    before = Path(slide.path).stat()
    os.truncate(slide.path, before.st_size // 2)
    refuse(tiled, store, SlideError, "another one than when it was tiled")
    with Path(slide.path).open("r+b") as file:  # the rest as a copy leaves it that broke off: zeros
        file.truncate(before.st_size)
    os.utime(slide.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refuse(tiled, store, (ReplacedSlide, UnreadableSlide), "damaged|other pixels|JPEG tiles")
