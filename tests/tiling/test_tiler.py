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

from distmil.cohort import Slide
from distmil.defects import DEFECT
from distmil.errors import StorageError, UnreadableSlide
from distmil.storage.schemas import GRID, PATCHES, STATUSES
from distmil.storage.store import Store
from distmil.tiling import plan, worker
from distmil.tiling.shards import (
    decode_image,
    encode_image,
    encode_shard,
    grid_of,
    outdated_folders,
    patches_folder,
    read_patches,
)
from distmil.tiling.tiler import SlideTiler, cut_patches, slide_row
from distmil.tiling.worker import do_step
from tests.support.dicom import save_dicom
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.slides import save_image, save_pyramid, tissue_image
from tests.support.tiles import PIXELS, SIZE, contents, framed, images_of, make_slide, patches_of, tile_slide, tiling

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


def test_a_changed_sibling_redoes_the_slide(tmp_path, store):
    files = [save_dicom(tmp_path / f"{i}.dcm", "1.2.3", seed=i) for i in range(3)]
    slide, config = Slide("s1", str(files[0])), tiling()
    record = tile_slide(slide, config, store)
    assert record.status == "unreadable"  # of a few tags, but a fact about these files
    tiler = SlideTiler(slide, config, store)
    assert tiler.finished() == record
    status = files[2].stat()
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns - 5_000_000_000))
    assert tiler.finished() is None
    files[2].unlink()
    assert tiler.finished() is None
    assert tiler.revived() is None


def write_text(path):
    path.write_text("no slide")


def cut_tiff(path):
    path.write_bytes(save_pyramid(path, PIXELS).read_bytes()[:700])


def damaged_tile(path):
    data = bytearray(save_jpeg_tiff(path, PIXELS, mpp=0.5).read_bytes())
    data[400 : len(data) // 2] = bytes(len(data) // 2 - 400)
    path.write_bytes(data)


def odd_strips(path):
    tifffile.imwrite(path, PIXELS, compression="webp", rowsperstrip=32, photometric="rgb", metadata=None)


def deep_tiff(path):
    tifffile.imwrite(path, PIXELS.astype(np.uint16), tile=(64, 64), photometric="rgb", metadata=None)


def jpeg(path):
    save_image(path, PIXELS, format="JPEG")


@pytest.mark.parametrize("suffix", ["tif", "svs", "ndpi", "MRXS", "mrxs", "png", "jpg", "vms", "dcm", "Doe", "bmp"])
@pytest.mark.parametrize(
    "make", [write_text, cut_tiff, damaged_tile, odd_strips, deep_tiff, jpeg, os.mkfifo, os.mkdir, lambda path: None]
)
def test_the_name_of_a_slide_that_fails_is_nowhere_in_the_store(tmp_path, store, make, suffix, monkeypatch):
    monkeypatch.setattr(worker, "PAUSE_S", 0)
    path = tmp_path / f"CNRY-Doe, Jane.{suffix}"
    make(path)
    slide, config = Slide("s1", str(path)), tiling(strategy="foreground")
    tiler = SlideTiler(slide, config, store)
    answer = do_step(tiler, None)
    for chunk in range(answer.chunks):
        answer = do_step(tiler, chunk)
    text = f"{answer.record.error} {answer.record.info if not answer.record.ok else ''}"
    assert "CNRY" not in text
    assert "Jane" not in text
    assert DEFECT not in answer.record.info
    assert not [name for name, data in contents(store.root).items() if b"CNRY" in data or b"Jane" in data]


@pytest.mark.parametrize("checksum", ["none", "full"])
def test_a_fifo_in_the_slides_place_is_never_waited_for(tmp_path, store, checksum):
    slide, config = make_slide(tmp_path), tiling(checksum=checksum)
    assert tile_slide(slide, config, store).ok
    Path(slide.path).unlink()
    os.mkfifo(slide.path)
    tiler = SlideTiler(slide, config, store)
    assert tiler.finished() is None
    answer = do_step(tiler, None)
    assert (answer.record.status, answer.record.error) == (
        "failed",
        "the slide cannot be read: it is a FIFO, not a file",
    )


@pytest.mark.parametrize(
    ("in_file", "given", "doubt"),
    [
        ((0.5, 0.5), 0.25, "the manifest says 0.25 um/px, the file 0.5 um/px; the manifest counts"),
        ((0.5, 1.0), 0.5, "the pixels are not square, 0.5 x 1 um"),
        ((0.5, 0.515), None, "the pixels are not quite square, 0.5 x 0.515 um; their mean counts"),
        ((0.5, 0.5), None, None),
    ],
)
def test_what_is_odd_about_a_resolution_is_a_doubt_on_the_record(tmp_path, store, in_file, given, doubt):
    path = tmp_path / "a.tif"
    resolution = {"resolution": (1e4 / in_file[0], 1e4 / in_file[1]), "resolutionunit": "CENTIMETER"}
    save_pyramid(path, PIXELS, **resolution)
    record = tile_slide(Slide("s1", str(path), mpp=given), tiling(mpp=0.5), store)
    assert record.ok
    assert record.info["doubts"] == ([doubt] if doubt else [])


def test_a_grey_slide_is_used_with_a_doubt(tmp_path, store):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS[..., 1], tile=(64, 64), photometric="minisblack", metadata=None)
    record = tile_slide(Slide("s1", str(tmp_path / "a.tif")), tiling(), store)
    assert (record.status, record.info["doubts"]) == ("ok", ["the file is grey: it holds no colours of a stain"])


@pytest.mark.parametrize(
    ("suffix", "changes", "is_doubted"),
    [
        ("png", {"strategy": "pad", "mpp": None}, False),
        ("png", {"strategy": "foreground", "mpp": 0.5}, False),
        ("tif", {"strategy": "pad", "mpp": None}, False),
        ("tif", {"strategy": "crop", "mpp": 0.5}, False),
        ("tif", {"strategy": "foreground", "mpp": None}, False),
        ("tif", {"strategy": "foreground", "mpp": 0.5}, True),
    ],
)
def test_glass_ink_and_stain_are_doubted_only_where_a_slide_is_expected(tmp_path, store, suffix, changes, is_doubted):
    road = np.random.default_rng(0).integers(60, 130, size=(300, 420, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        Image.fromarray(road).save(path)
    else:
        save_pyramid(path, road)
    record = tile_slide(Slide("s1", str(path), mpp=0.5), tiling(**changes), store)
    assert record.ok
    assert bool(record.info["doubts"]) is is_doubted, record.info["doubts"]


def test_a_grey_photograph_is_no_doubt(tmp_path, store):
    Image.fromarray(PIXELS[..., 1]).save(tmp_path / "a.png")
    slide = Slide("s1", str(tmp_path / "a.png"), mpp=0.5)
    assert tile_slide(slide, tiling(mpp=None), store).info["doubts"] == []
    assert tile_slide(slide, tiling(mpp=0.5), store).info["doubts"] == [
        "the file is grey: it holds no colours of a stain"
    ]


def test_patches_of_an_earlier_version_are_told_apart(store):
    config, other = tiling(), tiling(patch_px=96)
    assert outdated_folders(config, store) == []
    old = patches_folder(config, version=2)
    assert old != patches_folder(config)
    store.write(f"{old}/slides.parquet", b"")
    assert outdated_folders(config, store) == [old]
    assert outdated_folders(other, store) == []


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
    assert len(made[0]) == 4 + 4  # four shards of 60 patches, the grid, the record, the overview and its mask


def test_a_finished_slide_is_not_touched_and_a_replaced_one_is_made_anew(tmp_path, store, monkeypatch):
    slide, config = make_slide(tmp_path), tiling()
    first = tile_slide(slide, config, store)
    writes = []
    write = Store.write
    monkeypatch.setattr(
        Store, "write", lambda self, name, *given, **more: (writes.append(name), write(self, name, *given, **more))
    )
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
    monkeypatch.setattr("distmil.tiling.tiler.cut_patches", lambda *given: (cut.append(1), cut_patches(*given))[1])
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
    for chunk in (2, 0, 3, 1, 2):
        tiler.write_chunk(chunk)
    assert tiler.commit_if_whole()
    assert contents(other.root) == contents(one.root)


def test_a_commit_needs_every_chunk(tmp_path, store):
    tiler = SlideTiler(make_slide(tmp_path), tiling(), store)
    chunks = tiler.plan()
    for chunk in (3, 0, 2, 1):
        assert tiler.commit_if_whole() is None
        assert tiler.finished() is None
        tiler.write_chunk(chunk)
    assert chunks == 4
    record = tiler.commit_if_whole()
    assert record == tiler.finished()
    assert [part.name for part in record.parts] == [f"part-0000{i}.parquet" for i in range(4)]
    assert tiler.commit_if_whole() == record  # another process was faster


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
    lay = plan.lay_grid
    monkeypatch.setattr(plan, "lay_grid", lambda *given, **more: tuple(at + 5 for at in lay(*given, **more)))
    table = patches_of(store, config, tile_slide(slide, config, store))
    assert np.array_equal(images_of(table)[0], PIXELS[5:69, 5:69])


def test_a_slide_that_is_planned_again_is_not_done_meanwhile(tmp_path, store):
    slide, config = make_slide(tmp_path), tiling()
    tile_slide(slide, config, store)
    os.utime(slide.path, ns=(1, 1))
    tiler = SlideTiler(slide, config, store)
    tiler.plan()
    assert store.read_record(tiler.committed.record_name) is None


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
    assert len(made) == (8 if record.ok else 1)
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


# --- the file's own tiles


def jpeg_slide(tmp_path, **options):
    return Slide("s1", str(save_jpeg_tiff(tmp_path / "j.tif", PIXELS, **options)))


@pytest.mark.parametrize("values", [{}, {"patch_px": 50}, {"patch_px": 70, "stride_px": 33}, {"strategy": "pad"}])
@pytest.mark.parametrize("mpp", [None, 0.5, 0.25])
def test_the_files_tiles_give_the_patches_that_openslide_gives(tmp_path, values, mpp):
    slide = jpeg_slide(tmp_path, mpp=0.25)
    made = []
    for reader in ("auto", "openslide"):
        config, store = tiling(**values, mpp=mpp, reader=reader), Store(str(tmp_path / reader))
        record = tile_slide(slide, config, store)
        assert record.info["reader"] == {"auto": "rawtiles"}.get(reader, reader)
        made.append((record.parts, patches_of(store, config, record)))
    assert made[0][1].equals(made[1][1])  # pixels too: they are PNG
    assert made[0][0] == made[1][0]


def test_a_patch_that_is_a_tile_is_stored_as_it_is(tmp_path, store):
    slide, config = jpeg_slide(tmp_path, mpp=0.5), tiling(encode="reuse", mpp=0.505, strategy="pad")
    record = tile_slide(slide, config, store)
    table = patches_of(store, config, record)
    assert record.info["reused"] == table.num_rows == 11 * 7
    exact = patches_of(store, tiling(strategy="pad"), tile_slide(slide, tiling(strategy="pad"), store))
    assert exact.select(["x", "y"]).equals(table.select(["x", "y"]))
    for x, y, one, two in zip(*(table[c].to_pylist() for c in "xy"), images_of(table), images_of(exact), strict=True):
        if x + 64 <= SIZE[0] and y + 64 <= SIZE[1]:
            assert np.array_equal(one, two)
        else:  # the tile holds what is no part of the image, so it is encoded anew
            assert np.abs(one.astype(int) - two).mean() < 8
            assert one[420 - y + 16 :].min(initial=255) > 240


@pytest.mark.parametrize(
    "values", [{"patch_px": 32}, {"stride_px": 40}, {"mpp": 1.0}, {"encode": "jpeg"}, {"encode": "png"}]
)
def test_what_is_no_tile_is_encoded(tmp_path, store, values):
    config = tiling(**{"encode": "reuse", "mpp": 0.5} | values)
    record = tile_slide(jpeg_slide(tmp_path, mpp=0.5), config, store)
    assert record.info["reused"] == 0
    shape = (config.patch_px, config.patch_px, 3)
    assert all(image.shape == shape for image in images_of(patches_of(store, config, record)))


def test_patches_apart_by_whole_tiles_are_reused(tmp_path, store):
    config = tiling(encode="reuse", stride_px=128)
    record = tile_slide(jpeg_slide(tmp_path), config, store)
    assert record.info["reused"] == record.rows == 5 * 3


def test_tiles_that_decode_to_other_pixels_are_left_to_openslide(tmp_path, store, monkeypatch):
    assert tile_slide(jpeg_slide(tmp_path), tiling(chunk_patches=17), store).info["doubts"] == []
    monkeypatch.setattr(plan, "agrees", lambda *given, **more: False)
    record = tile_slide(jpeg_slide(tmp_path), tiling(), store)
    assert record.info["reader"] == "openslide"
    assert "its tiles do not decode to OpenSlide's pixels by themselves" in record.info["doubts"][0]


def test_a_level_with_missing_tiles_is_left_to_openslide_and_level_0_is_counted(tmp_path, store):
    # OpenSlide draws a missing tile of a coarser level from the finer one
    slide = jpeg_slide(tmp_path, mpp=0.25, downsamples=(1, 2), missing=[(2, 3)])
    fine, coarse = (tile_slide(slide, tiling(mpp=mpp), store) for mpp in (0.25, 0.5))
    assert (fine.info["reader"], fine.info["blank"]) == ("rawtiles", 1)
    assert coarse.info["reader"] == "openslide"


def test_reduction_by_dct_is_named_and_near_the_average(tmp_path, store):
    slide = jpeg_slide(tmp_path, mpp=0.25, quality=95)
    tables = []
    for reduce in ("area", "dct"):
        config = tiling(mpp=0.5, reduce=reduce)
        tables.append(patches_of(store, config, tile_slide(slide, config, store)))
    for one, two in zip(*(images_of(table) for table in tables), strict=True):
        assert 0 < np.abs(one.astype(int) - two).mean() < 6


def test_a_nearly_twofold_slide_is_reduced_by_two(tmp_path, store):
    # 0.252 um/px twofold is 0.504, within the tolerance of 0.5: whole pixels, no resampling
    config = tiling(mpp=0.5)
    record = tile_slide(jpeg_slide(tmp_path, mpp=0.252), config, store)
    assert record.info["extent_px"] == 128
    assert patches_of(store, config, record)["mpp"].to_pylist()[0] == pytest.approx(0.504, abs=1e-4)


def test_a_run_of_patches_is_a_block_of_the_slide(tmp_path, store):
    # 40 patches wide: a shard of 64 holds 32 columns of two rows
    pixels = tissue_image((40 * 16, 10 * 16), seed=1)
    config = tiling(patch_px=16, chunk_patches=64)
    record = tile_slide(make_slide(tmp_path, pixels=pixels), config, store)
    first = read_patches(store, f"{patches_folder(config)}/s1/{record.parts[0].name}")
    assert (first["x"].to_numpy().max(), first["y"].to_numpy().max()) == (31 * 16, 16)
    table = patches_of(store, config, record)
    assert len(set(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True))) == 400


# --- foreground


def test_no_least_tissue_keeps_the_whole_rectangle_and_snap_widens_it_to_tiles(tmp_path, store):
    slide = jpeg_slide(tmp_path, tile=(128, 96))
    found = {}
    for snap in (False, True):
        config = tiling(strategy="foreground", min_tissue=0.0, patch_px=32, snap=snap)
        table = patches_of(store, config, tile_slide(slide, config, store))
        x, y = table["x"].to_numpy(), table["y"].to_numpy()
        found[snap] = [int(value) for value in (x.min(), y.min(), x.max(), y.max())]
        assert table.num_rows == len(set(x.tolist())) * len(set(y.tolist()))
    # tissue from (90, 60) to (610, 390); tiles of 128 x 96 px
    assert found == {False: [64, 32, 608, 384], True: [0, 0, 608, 416]}


def test_the_users_own_tissue_decides(tmp_path, store):
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[64:128, 128:320] = 255
    own = tmp_path / "own.png"
    assert cv2.imwrite(str(own), mask)
    slide = make_slide(tmp_path, tissue_path=str(own))
    config = tiling(strategy="foreground")
    record = tile_slide(slide, config, store)
    table = patches_of(store, config, record)
    assert list(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)) == [(128, 64), (192, 64), (256, 64)]
    assert SlideTiler(slide, config, store).finished() == record
    mask[64:128, 192:320] = 0
    assert cv2.imwrite(str(own), mask)
    assert SlideTiler(slide, config, store).finished() is None
    assert tile_slide(slide, config, store).rows == 1


def test_a_tissue_file_that_cannot_be_used_is_the_slides_status(tmp_path, store):
    own = tmp_path / "own.geojson"
    own.write_text("{}")
    record = tile_slide(make_slide(tmp_path, tissue_path=str(own)), tiling(), store)
    assert record.status == "bad_annotation"


# --- checksums


@pytest.mark.parametrize("checksum", ["fast", "full"])
def test_a_copied_file_is_known_by_its_checksum(tmp_path, store, checksum):
    slide, config = make_slide(tmp_path), tiling(checksum=checksum)
    first = tile_slide(slide, config, store)
    assert slide_row(first)["sha256"] == (first.key["source"]["sha256"] if checksum == "full" else None)
    os.utime(slide.path, ns=(1, 1))
    tiler = SlideTiler(slide, config, store)
    assert tiler.finished() is None
    again = tiler.revived()
    assert again.parts == first.parts
    assert tiler.finished() == again
    make_slide(tmp_path, pixels=PIXELS[:, ::-1])
    assert tiler.revived() is None


def test_a_checksum_asked_for_later_is_added_without_tiling(tmp_path, store, monkeypatch):
    slide = make_slide(tmp_path)
    first = tile_slide(slide, tiling(), store)
    config = tiling(checksum="full")
    assert SlideTiler(slide, config, store).finished() is None
    monkeypatch.setattr(SlideTiler, "plan", None)
    second = tile_slide(slide, config, store)
    assert second.parts == first.parts
    assert len(second.key["source"]["sha256"]) == 64
    assert SlideTiler(slide, tiling(), store).finished() == second


def test_a_default_resolution_counts_only_where_it_was_needed(tmp_path, store):
    stated, silent = make_slide(tmp_path, mpp=0.5), Slide("s2", str(save_pyramid(tmp_path / "b.tif", PIXELS)))
    tile_slide(stated, tiling(mpp=0.5), store)
    assert tile_slide(silent, tiling(mpp=0.5), store).status == "no_mpp"
    config = tiling(mpp=0.5, default_mpp=0.25)
    assert SlideTiler(stated, config, store).finished()
    assert SlideTiler(silent, config, store).finished() is None
    assert tile_slide(silent, config, store).ok
    assert SlideTiler(silent, tiling(mpp=0.5, default_mpp=0.3), store).finished() is None


def test_an_absurd_size_is_refused_before_it_fills_the_memory(tmp_path, store, monkeypatch):
    monkeypatch.setattr(plan, "MAX_PLACES", 50)
    record = tile_slide(make_slide(tmp_path), tiling(), store)
    assert record.status == "unreadable"
    assert "700 x 420 px" in record.error


def test_a_patch_that_would_fill_the_memory_is_refused_before_it_is_read(tmp_path, store):
    record = tile_slide(make_slide(tmp_path, mpp=0.25), tiling(mpp=1000.0, patch_px=64, strategy="pad"), store)
    assert record.status == "failed"
    assert "one patch takes 256000 x 256000 px" in record.error
    assert "defect" not in record.info
