"""Damage to what was committed is found, wherever it is."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distmil.cohort import Slide
from distmil.storage.store import RECORD_FILE
from distmil.tiling.shards import encode_shard, read_patches
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.verification import find_damage
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.tiles import PIXELS, make_slide, tile_slide, tiling


@pytest.fixture
def tiled(tmp_path, store):
    """A tiled slide and its folder."""
    slide, config = make_slide(tmp_path), tiling(checksum="full")
    assert tile_slide(slide, config, store).ok
    return slide, config, Path(store.root) / SlideTiler(slide, config, store).folder


def test_what_is_whole_has_no_damage(tiled, store):
    slide, config, _ = tiled
    assert find_damage(slide, config, store) == []
    assert find_damage(Slide("other", slide.path), config, store) == []


@pytest.mark.parametrize(
    "name", ["part-00000.parquet", "part-00003.parquet", "grid.arrow", "overview.jpg", RECORD_FILE]
)
def test_any_flipped_bit_is_found(tiled, store, name):
    slide, config, folder = tiled
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(5)
    for at in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(damaged)
        found = find_damage(slide, config, store)
        assert len(found) == 1, at
        assert "commit record" in found[0] if name == RECORD_FILE else name in found[0]
    (folder / name).write_bytes(whole)
    assert find_damage(slide, config, store) == []


def test_a_shard_that_is_gone_or_cut_off_is_found(tiled, store):
    slide, config, folder = tiled
    part = folder / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    assert "damaged" in find_damage(slide, config, store)[0]
    part.unlink()
    assert "is gone" in find_damage(slide, config, store)[0]


def test_a_damaged_slide_is_made_anew_to_the_same_bytes(tiled, store):
    slide, config, folder = tiled
    part = folder / "part-00002.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[::-1])
    store.delete(SlideTiler(slide, config, store).committed.record_name)
    assert tile_slide(slide, config, store).ok
    assert part.read_bytes() == whole


def test_a_slide_that_changed_behind_its_time_is_found_by_its_checksum(tiled, store):
    slide, config, _ = tiled
    path = Path(slide.path)
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_damage(slide, config, store) == ["the slide is not the file that was tiled: its checksum differs"]
    path.unlink()
    assert find_damage(slide, config, store) == ["the slide cannot be read: No such file or directory"]


@pytest.mark.parametrize("change", ["swapped", "without pixels", "one less"])
def test_whole_files_that_contradict_the_grid_are_found(tmp_path, store, change):
    slide, config = Slide("s1", str(save_jpeg_tiff(tmp_path / "a.tif", PIXELS))), tiling()
    tiler = SlideTiler(slide, config, store)
    record = tile_slide(slide, config, store)
    name = record.parts[0].name
    table = read_patches(store, f"{tiler.folder}/{name}")
    if change == "swapped":
        table = table.take([1, 0, *range(2, table.num_rows)])
    elif change == "one less":
        table = table.slice(1)
    else:
        images = [b"", *table["image"].to_pylist()[1:]]
        table = table.set_column(table.schema.get_field_index("image"), table.schema.field("image"), pa.array(images))
    part = store.write_part(tiler.folder, name, encode_shard(table), rows=table.num_rows)
    values = record.to_json()
    values["parts"][0] = vars(part)
    store.write_record(tiler.committed.record_name, type(record).from_json(values))
    assert any(text in " ".join(find_damage(slide, config, store)) for text in ("other patches", "without pixels"))
