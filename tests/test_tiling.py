"""Tiling: patches hold the slide's pixels, every failure has its status, and a broken-off job ends alike."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from distmil import tiling as module
from distmil.cohort import Slide
from distmil.config import TilingConfig
from distmil.errors import StorageError, UnreadableSlide
from distmil.shards import decode_image, encode_image, encode_shard, grid_of, patches_folder, read_patches
from distmil.storage import Store
from distmil.tables import GRID, PATCHES, STATUSES
from distmil.tiling import SlideTiler, slide_row, tile_slide
from tests.slidemaking import save_image, save_pyramid, tissue_image

SIZE = (700, 420)
PIXELS = tissue_image(SIZE, seed=4, box=(90, 60, 610, 390))


def tiling(**values):
    """Lossless small patches of everything, in pixels, sixteen to a shard."""
    defaults = {"strategy": "crop", "patch_px": 64, "mpp": None, "encode": "png", "chunk_patches": 16}
    return TilingConfig(**defaults | values)


def make_slide(tmp_path, *, pixels=PIXELS, name="slide.tif", mpp=None, **values):
    path = tmp_path / name
    if name.endswith(".png"):
        save_image(path, pixels)
    else:
        save_pyramid(path, pixels, mpp=mpp)
    return Slide("s1", str(path), **values)


def patches_of(store, config, record):
    folder = f"{patches_folder(config)}/{record.slide_id}"
    return pa.concat_tables([read_patches(store, f"{folder}/{part.name}") for part in record.parts])


def images_of(table):
    return [decode_image(data) for data in table["image"].to_pylist()]


def framed(pixels, margin):
    """An image on white, and how far its corner moved."""
    height, width = pixels.shape[:2]
    frame = np.full((height + 2 * margin, width + 2 * margin, 3), 255, np.uint8)
    frame[margin : margin + height, margin : margin + width] = pixels
    return frame


def contents(root):
    """Every file of a store and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


# --- pixels


@pytest.mark.parametrize("name", ["slide.png", "slide.tif"])
@pytest.mark.parametrize("strategy", ["crop", "pad", "foreground"])
@pytest.mark.parametrize("stride", [None, 40])
def test_a_patch_holds_the_pixels_at_its_place(tmp_path, store, name, strategy, stride):
    config = tiling(strategy=strategy, stride_px=stride)
    record = tile_slide(make_slide(tmp_path, name=name), config, store)
    assert record.ok
    table = patches_of(store, config, record)
    assert table.schema == PATCHES
    assert table.num_rows == record.rows > 40
    assert table["extent_px"].unique().to_pylist() == [64]
    frame = framed(PIXELS, 64)
    for x, y, image in zip(table["x"].to_pylist(), table["y"].to_pylist(), images_of(table), strict=True):
        assert np.array_equal(image, frame[64 + y : 128 + y, 64 + x : 128 + x])


def test_a_finer_slide_is_averaged_down(tmp_path, store):
    config = tiling(mpp=0.5)
    record = tile_slide(make_slide(tmp_path, mpp=0.25), config, store)
    table = patches_of(store, config, record)
    assert table["extent_px"].unique().to_pylist() == [128]
    assert table["mpp"].unique().to_pylist() == [0.5]
    assert (max(table["x"].to_pylist()), max(table["y"].to_pylist())) == (512, 256)
    for x, y, image in zip(table["x"].to_pylist(), table["y"].to_pylist(), images_of(table), strict=True):
        expected = cv2.resize(PIXELS[y : y + 128, x : x + 128], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(image, expected)


def test_an_odd_resolution_keeps_every_patch_on_its_place(tmp_path, store):
    # 0.243 um/px at 0.5: extents of 132 px at a stride of 131.69
    config = tiling(mpp=0.5)
    record = tile_slide(make_slide(tmp_path, mpp=0.243), config, store)
    table = patches_of(store, config, record)
    assert table["extent_px"].unique().to_pylist() == [132]
    assert sorted(set(table["x"].to_pylist())) == [round(i * 64 * 0.5 / 0.243) for i in range(5)]
    for x, y, image in zip(table["x"].to_pylist(), table["y"].to_pylist(), images_of(table), strict=True):
        expected = cv2.resize(PIXELS[y : y + 132, x : x + 132], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(image, expected)


def test_a_pyramids_own_level_is_read_as_it_is(tmp_path, store):
    path = save_pyramid(tmp_path / "slide.tif", PIXELS, mpp=0.25, downsamples=(1, 2))
    config = tiling(mpp=0.5)
    table = patches_of(store, config, tile_slide(Slide("s1", str(path)), config, store))
    level = cv2.resize(PIXELS, (350, 210), interpolation=cv2.INTER_AREA)
    for x, y, image in zip(table["x"].to_pylist(), table["y"].to_pylist(), images_of(table), strict=True):
        assert np.array_equal(image, level[y // 2 : y // 2 + 64, x // 2 : x // 2 + 64])


def test_the_manifests_resolution_counts_before_the_files(tmp_path, store):
    config = tiling(mpp=0.5)
    stated = tile_slide(make_slide(tmp_path, mpp=0.5), config, store)
    corrected = tile_slide(Slide("s1", str(tmp_path / "slide.tif"), mpp=0.25), config, store)
    assert stated.info["extent_px"] == 64
    assert corrected.info["extent_px"] == 128
    assert corrected.info["mpp"] == 0.25


def test_foreground_keeps_what_holds_tissue(tmp_path, store):
    config = tiling(strategy="foreground", min_tissue=0.3)
    table = patches_of(store, config, tile_slide(make_slide(tmp_path), config, store))
    truth = np.zeros(SIZE[::-1], bool)
    truth[60:390, 90:610] = True
    everything = patches_of(
        store, tiling(strategy="pad"), tile_slide(make_slide(tmp_path), tiling(strategy="pad"), store)
    )
    kept = set(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True))
    shares = zip(*(everything[name].to_pylist() for name in ("x", "y", "tissue_fraction")), strict=True)
    for x, y, share in shares:
        assert share == pytest.approx(truth[y : y + 64, x : x + 64].sum() / 64**2, abs=0.08)
        assert ((x, y) in kept) is (share >= 0.3)
    assert min(table["tissue_fraction"].to_pylist()) < 0.6


@pytest.mark.parametrize(("quality", "limit"), [(75, 30), (95, 16)])
def test_jpeg_is_close_and_holds_no_metadata(quality, limit):
    smooth = cv2.GaussianBlur(PIXELS[100:164, 100:196], (0, 0), 2)
    data = encode_image(smooth, tiling(encode="jpeg", jpeg_quality=quality))
    assert np.abs(decode_image(data).astype(int) - smooth).max() < limit
    assert b"Exif" not in data
    assert b"http" not in data


@pytest.mark.parametrize("data", [b"", b"\xff\xd8nothing", b"\x89PNG\r\n\x1a\nnothing"])
def test_a_damaged_image_is_an_error_of_its_own(data):
    with pytest.raises(UnreadableSlide):
        decode_image(data)


# --- statuses


def failing_slide(tmp_path, cause):
    """A slide that cannot be tiled for that cause, and how it is tiled."""
    if cause == "no_tissue":
        return make_slide(tmp_path, pixels=np.full((300, 500, 3), 250, np.uint8)), tiling(strategy="foreground")
    if cause == "too_small":
        return make_slide(tmp_path, pixels=PIXELS[:63]), tiling()
    if cause == "too_coarse":
        return make_slide(tmp_path, mpp=1.0), tiling(mpp=0.5)
    if cause == "no_mpp":
        return make_slide(tmp_path), tiling(mpp=0.5)
    if cause == "missing":
        return Slide("s1", str(tmp_path / "none.tif")), tiling()
    (tmp_path / "cut.tif").write_bytes(b"II*\0")
    return Slide("s1", str(tmp_path / "cut.tif")), tiling()


CAUSES = ["no_tissue", "too_small", "too_coarse", "no_mpp", "missing", "unreadable"]


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_status(tmp_path, store, cause):
    slide, config = failing_slide(tmp_path, cause)
    record = tile_slide(slide, config, store)
    assert record.status == cause
    assert cause in STATUSES
    assert record.error
    assert str(tmp_path) not in record.error
    assert record.rows == 0
    # a fact about the file is kept; what may pass by itself is tried again
    assert (SlideTiler(slide, config, store).finished() == record) is (cause != "missing")
    assert slide_row(record)["status"] == cause


@pytest.mark.parametrize("cause", ["too_small", "no_tissue"])
def test_a_status_is_no_longer_true_of_another_file(tmp_path, store, cause):
    slide, config = failing_slide(tmp_path, cause)
    assert tile_slide(slide, config, store).status == cause
    make_slide(tmp_path)
    assert tile_slide(slide, config, store).ok


def test_a_slide_that_comes_back_is_tiled(tmp_path, store):
    slide, config = failing_slide(tmp_path, "missing")
    assert tile_slide(slide, config, store).status == "missing"
    save_pyramid(tmp_path / "none.tif", PIXELS)
    assert tile_slide(slide, config, store).ok


def test_a_slide_that_goes_away_is_missing_though_it_was_tiled(tmp_path, store):
    slide, config = make_slide(tmp_path), tiling()
    done = tile_slide(slide, config, store)
    Path(slide.path).rename(tmp_path / "away")
    assert tile_slide(slide, config, store).status == "missing"
    (tmp_path / "away").rename(slide.path)
    assert SlideTiler(slide, config, store).finished() == done


def test_a_default_resolution_helps_only_a_slide_that_states_none(tmp_path, store):
    config = tiling(mpp=0.5, default_mpp=0.25)
    assert tile_slide(make_slide(tmp_path), config, store).info["extent_px"] == 128
    assert tile_slide(make_slide(tmp_path, mpp=0.5), config, store).info["extent_px"] == 64


# --- commits


def test_the_same_slide_makes_the_same_bytes(tmp_path):
    slide = make_slide(tmp_path)
    made = []
    for name in ("one", "two"):
        tile_slide(slide, tiling(encode="jpeg"), Store(str(tmp_path / name)))
        made.append(contents(tmp_path / name))
    assert made[0] == made[1]
    assert len(made[0]) == 4 + 2  # four shards of 60 patches, the grid and the record


def test_a_finished_slide_is_not_touched_and_a_replaced_one_is_made_anew(tmp_path, store, monkeypatch):
    slide, config = make_slide(tmp_path), tiling()
    first = tile_slide(slide, config, store)
    writes = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, name, data: (writes.append(name), write(self, name, data))[1])
    assert tile_slide(slide, config, store) == first
    assert writes == []
    os.utime(slide.path, ns=(1, 1))
    make_slide(tmp_path, pixels=PIXELS[:, ::-1])
    second = tile_slide(slide, config, store)
    assert second.digest != first.digest
    assert np.array_equal(images_of(patches_of(store, config, second))[0], PIXELS[:64, ::-1][:, :64])


def test_a_touched_file_with_the_same_pixels_keeps_its_digest(tmp_path, store):
    # so that neither labels nor embeddings are made anew
    slide, config = make_slide(tmp_path), tiling()
    first = tile_slide(slide, config, store)
    os.utime(slide.path, ns=(1, 1))
    second = tile_slide(slide, config, store)
    assert second.key != first.key
    assert second.digest == first.digest


def test_another_resolution_in_the_manifest_tiles_anew(tmp_path, store):
    config = tiling(mpp=0.5)
    slide = make_slide(tmp_path, mpp=0.5)
    tile_slide(slide, config, store)
    assert SlideTiler(slide, config, store).finished()
    assert SlideTiler(Slide("s1", slide.path, mpp=0.4), config, store).finished() is None


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_broken_off_slide_goes_on_to_the_same_bytes(tmp_path, monkeypatch, done):
    slide, config = make_slide(tmp_path), tiling()
    whole, broken = Store(str(tmp_path / "whole")), Store(str(tmp_path / "broken"))
    tile_slide(slide, config, whole)
    tiler = SlideTiler(slide, config, broken)
    assert tiler.plan() == 4
    for chunk in range(done):
        tiler.write_chunk(chunk)
    assert tiler.finished() is None
    # a crash in the middle of a shard: the temporary file stays, which no reader takes
    (Path(broken.root) / tiler.folder / ".part-00003.parquet.tmp-host-1-ab").write_bytes(b"half")
    cut = []
    make = SlideTiler._cut
    monkeypatch.setattr(SlideTiler, "_cut", lambda self, *given: (cut.append(1), make(self, *given))[1])
    record = tile_slide(slide, config, broken)
    assert len(cut) == 4 - done
    assert record.ok
    found = {name: data for name, data in contents(broken.root).items() if ".tmp-" not in name}
    assert found == contents(whole.root)


def test_chunks_may_be_written_in_any_order_and_twice(tmp_path):
    slide, config = make_slide(tmp_path), tiling()
    one, other = Store(str(tmp_path / "one")), Store(str(tmp_path / "other"))
    tile_slide(slide, config, one)
    tiler = SlideTiler(slide, config, other)
    tiler.plan()
    parts = {chunk: tiler.write_chunk(chunk) for chunk in (2, 0, 3, 1, 2)}
    tiler.commit([parts[i] for i in range(4)])
    assert contents(other.root) == contents(one.root)


def test_a_commit_needs_every_chunk(tmp_path, store):
    tiler = SlideTiler(make_slide(tmp_path), tiling(), store)
    chunks = tiler.plan()
    parts = [tiler.write_chunk(chunk) for chunk in range(chunks)]
    for some in (parts[:-1], parts[1:], [], [*parts, parts[0]]):
        with pytest.raises(StorageError, match="s1"):
            tiler.commit(some)
    assert tiler.finished() is None
    assert tiler.commit(parts).ok


def test_a_file_replaced_while_it_is_tiled_is_never_committed(tmp_path, store):
    slide, config = make_slide(tmp_path), tiling()
    tiler = SlideTiler(slide, config, store)
    tiler.plan()
    tiler.write_chunk(0)
    make_slide(tmp_path, pixels=255 - PIXELS)
    os.utime(slide.path, ns=(1, 1))
    with pytest.raises(Exception, match="s1: the file was replaced"):
        tiler.write_chunk(1)
    record = tile_slide(slide, config, store)
    assert np.array_equal(images_of(patches_of(store, config, record))[0], 255 - PIXELS[:64, :64])


def test_a_chunk_of_another_grid_is_not_reused(tmp_path, store, monkeypatch):
    # another release may find other tissue on the same file
    slide, config = make_slide(tmp_path), tiling()
    tiler = SlideTiler(slide, config, store)
    tiler.plan()
    tiler.write_chunk(0)
    lay = module.lay_grid
    monkeypatch.setattr(module, "lay_grid", lambda *given, **more: tuple(at + 5 for at in lay(*given, **more)))
    table = patches_of(store, config, tile_slide(slide, config, store))
    assert np.array_equal(images_of(table)[0], PIXELS[5:69, 5:69])


def test_a_slide_that_is_planned_again_is_not_done_meanwhile(tmp_path, store):
    slide, config = make_slide(tmp_path), tiling()
    tile_slide(slide, config, store)
    os.utime(slide.path, ns=(1, 1))
    tiler = SlideTiler(slide, config, store)
    tiler.plan()
    assert store.read_record(tiler.record_name) is None


def test_the_grid_is_the_patches_without_their_pixels(tmp_path, store):
    config = tiling(strategy="foreground")
    record = tile_slide(make_slide(tmp_path), config, store)
    grid = grid_of(store, config, record)
    assert grid.schema == GRID
    assert grid.equals(patches_of(store, config, record).select(GRID.names).combine_chunks())


# --- damage


def test_a_flipped_bit_is_never_taken_for_data(tmp_path, store):
    config = tiling(encode="jpeg")
    record = tile_slide(make_slide(tmp_path), config, store)
    name = f"{patches_folder(config)}/s1/{record.parts[1].name}"
    sound, path = read_patches(store, name), Path(store.path(name))
    data = path.read_bytes()
    generator = np.random.default_rng(6)
    found = 0
    for at in generator.integers(4, len(data), 150).tolist():
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            table = read_patches(store, name)
        except StorageError as error:
            found += str(path) in str(error)
        else:
            assert table.equals(sound)  # a bit of the footer that says nothing about the data
    assert found > 120


@pytest.mark.parametrize("change", ["gone", "cut", "empty"])
def test_a_lost_shard_is_named(tmp_path, store, change):
    config = tiling()
    record = tile_slide(make_slide(tmp_path), config, store)
    name = f"{patches_folder(config)}/s1/{record.parts[0].name}"
    path = Path(store.path(name))
    data = path.read_bytes()
    path.unlink()
    if change != "gone":
        path.write_bytes(data[:-100] if change == "cut" else b"")
    with pytest.raises(StorageError, match=r"part-00000\.parquet is damaged or gone"):
        read_patches(store, name)


def test_every_page_of_a_shard_has_a_checksum():
    rows = {"slide_id": ["a"] * 3, "x": [0, 1, 2], "y": [0] * 3, "extent_px": [8] * 3, "mpp": [None] * 3}
    rows |= {"tissue_fraction": [1.0] * 3, "image": [bytes([i]) * 4000 for i in range(3)]}
    data = bytearray(encode_shard(pa.table(rows, schema=PATCHES)).to_pybytes())
    at = data.index(b"\x01" * 1000)
    data[at] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)


# --- privacy

MARKER = "CANARY-0815-Jane-Doe"


def marked_slide(path):
    """A slide with a name in every place where scanners put names, label image included."""
    texts = [(code, "s", 0, f"{MARKER} {code}", True) for code in (269, 285, 315, 316, 33432)]
    with tifffile.TiffWriter(path) as file:
        for i, pixels in enumerate((PIXELS, np.full((90, 150, 3), 7, np.uint8))):
            file.write(
                pixels,
                tile=(64, 64) if i == 0 else None,
                photometric="rgb",
                description=f"{MARKER} label" if i else f"{MARKER}|Filename = {MARKER}|Barcode = {MARKER}",
                software=MARKER,
                datetime=True,
                metadata=None,
                extratags=texts,
                subfiletype=i,
            )


@pytest.mark.parametrize("encode", ["png", "jpeg"])
@pytest.mark.parametrize("kind", ["whole-slide", "plain", "photograph", "unreadable"])
def test_no_name_in_a_slides_metadata_reaches_the_store(tmp_path, store, encode, kind):
    path = tmp_path / {"photograph": "a.jpg", "unreadable": "b.svs"}.get(kind, "a.tif")
    if kind == "photograph":
        exif = Image.Exif()
        exif[315] = exif[270] = MARKER
        save_image(path, PIXELS, exif=exif, comment=MARKER)
    elif kind == "plain":
        save_image(path, PIXELS, tiffinfo={270: MARKER, 305: MARKER, 315: MARKER})
    else:
        marked_slide(path)
    if kind == "unreadable":
        path.write_bytes(path.read_bytes()[:200] + MARKER.encode())
    assert MARKER.encode() in path.read_bytes()
    folder = tmp_path / MARKER
    folder.mkdir()
    shutil.move(path, folder)
    record = tile_slide(Slide("s1", str(folder / path.name)), tiling(encode=encode), store)
    assert record.ok is (kind != "unreadable")
    made = contents(store.root)
    assert len(made) == (6 if record.ok else 1)
    for name, data in made.items():
        assert MARKER.encode() not in data, name
        assert str(tmp_path).encode() not in data, name


def test_the_slides_table_holds_technical_properties_only(tmp_path, store):
    path = tmp_path / "a.tif"
    marked_slide(path)
    row = slide_row(tile_slide(Slide("s1", str(path)), tiling(), store))
    assert row == {
        "slide_id": "s1",
        "status": "ok",
        "error": None,
        "width_px": 700,
        "height_px": 420,
        "mpp": None,
        "levels": 1,
        "vendor": "generic-tiff",
        "reader": "openslide",
        "num_patches": 60,
        "sha256": None,
    }
