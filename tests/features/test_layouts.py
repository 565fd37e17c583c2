"""Files of every layout, as their tools write them and as distmil writes them, against what was put in."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from distmil.cohort import Slide
from distmil.config.features import FeaturesConfig
from distmil.errors import ConfigError
from distmil.features.exporter import check_export, export_slide
from distmil.features.finding import open_folder
from distmil.features.grid import SlideFacts, as_half, place
from distmil.features.lazyslide import _factor
from distmil.features.slide_table import SlideTable
from tests.support.feature_files import (
    LAYOUTS,
    Made,
    random_features,
    write,
    write_clam,
    write_slide2vec,
    write_stamp,
    write_trident,
)
from tests.support.scale import cases

CASES = cases(25, full=500)


def read(folder: Path, made: Made, **given):
    """Import one slide's file; the manifest knows the slide's mpp."""
    config = FeaturesConfig(folder=str(folder), **given)
    file = open_folder(config).find(Slide(made.slide_id, ""))
    with file.opened(config) as contents:
        placed = place(contents, SlideFacts(mpp=made.mpp), config)
        half_NE = as_half(contents.embedding_NE[0 : contents.header.num_patches], first=0)
    return contents.header, placed, half_NE


def check(made: Made, found, *, layout: str) -> None:
    header, placed, half_NE = found
    assert header.layout == layout
    assert np.array_equal(np.stack([placed.x_N, placed.y_N], axis=1), made.xy)
    assert placed.extent_px == made.extent_px
    assert header.patch_px == made.patch_px
    assert placed.patch_mpp == pytest.approx(made.patch_mpp, rel=1e-3)
    assert np.array_equal(half_NE, made.features.astype(np.float16))
    assert header.encoder == (None if layout == "clam" else made.encoder)
    if layout == "stamp":  # which does not know the slide's size
        assert placed.size == tuple(made.xy.max(axis=0) + made.extent_px)
    else:  # CLAM rounds it to pixels of the level that it reads
        rounding = made.extent_px // made.patch_px if layout == "clam" else 0
        assert np.abs(np.subtract(placed.size, made.size)).max() <= rounding


@pytest.mark.parametrize("layout", [*LAYOUTS, "lazyslide"])
def test_files_of_other_tools_are_read(layout, tmp_path):
    if layout == "lazyslide":
        pytest.importorskip("zarr")
    rng = np.random.default_rng(1)
    for number in range(CASES):
        made = random_features(rng, slide_id=f"s{number}.a_b")
        check(made, read(write(made, tmp_path / str(number), layout), made), layout=layout)


@pytest.mark.parametrize("layout", [*LAYOUTS, "lazyslide"])
def test_what_is_exported_is_what_other_tools_expect(layout, tmp_path):
    """Written by distmil, read back by what the tools' own readers take, and by distmil."""
    if layout == "lazyslide":
        pytest.importorskip("spatialdata")
    rng = np.random.default_rng(2)
    for number in range(CASES):
        made = random_features(rng, slide_id=f"s{number}")
        table = SlideTable(
            made.slide_id, made.xy[:, 0].astype(np.int32), made.xy[:, 1].astype(np.int32),
            made.features.astype(np.float16), rng.random(len(made.xy)).astype(np.float32), made.extent_px,
            made.patch_px, made.size, made.mpp, made.encoder, made.patch_px - made.overlap_px,
        )  # fmt: skip
        root = tmp_path / str(number)
        path = export_slide(table, root, layout=layout, stamp_version="2.4.0")
        {"clam": as_clam, "trident": as_trident, "stamp": as_stamp, "slide2vec": as_slide2vec,
         "lazyslide": as_lazyslide}[layout](path, made)  # fmt: skip
        header, placed, half_NE = read(root if layout in {"clam", "slide2vec"} else path.parent, made)
        assert np.array_equal(np.stack([placed.x_N, placed.y_N], axis=1), made.xy)
        assert (placed.extent_px, header.layout) == (made.extent_px, layout)
        assert np.array_equal(half_NE, made.features.astype(np.float16))
        assert [file for file in root.rglob("*") if file.name.startswith(".")] == []


def as_clam(path: Path, made: Made) -> None:
    """``Generic_MIL_Dataset`` and ``create_heatmaps.py`` read these."""
    with h5py.File(path) as file, h5py.File(path.parents[1] / "patches" / path.name) as patches:
        assert dict(file["coords"].attrs) == dict(file["features"].attrs) == {}
        assert (file["coords"].dtype, file["features"].dtype) == (np.int32, np.float32)
        assert patches["coords"].dtype == np.int64
        attributes = patches["coords"].attrs
        assert attributes["patch_size"] * attributes["downsample"][0] == made.extent_px
        assert tuple(attributes["level_dim"] * attributes["downsample"]) == made.size
    tensor = torch.load(path.parents[1] / "pt_files" / f"{made.slide_id}.pt", weights_only=True)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), made.features.astype(np.float16).astype(np.float32))


def as_lazyslide(path: Path, made: Made) -> None:
    """``wsidata.open_wsi`` reads these, by spatialdata; what is there already is replaced."""
    import spatialdata  # noqa: PLC0415  # an extra

    found = spatialdata.read_zarr(path)
    tiles, table = found.shapes["tiles"], found.tables[f"{made.encoder}_tiles"]
    assert np.array_equal(table.X, made.features.astype(np.float16).astype(np.float32))
    assert np.array_equal(tiles[["x", "y"]].to_numpy()[table.obs["tile_id"]], made.xy)
    bounds = tiles.geometry.bounds.to_numpy()
    assert np.array_equal(bounds, np.concatenate([made.xy, made.xy + made.extent_px], axis=1))
    assert set(table.obs["library_id"]) == {"tiles"}
    spec, slide = found.attrs["tile_spec"]["tiles"], found.attrs["slide_properties"]
    assert int(spec["width"] * spec["base_downsample"]) == made.extent_px
    assert int(spec["stride_width"] * spec["base_downsample"]) == made.extent_px * (
        made.patch_px - made.overlap_px
    ) // (made.patch_px)
    assert tuple(slide["shape"][::-1]) == made.size


def test_the_edge_of_a_tile_for_lazyslide_is_cut_off_to_the_extent():
    """Its reader multiplies and cuts off: 7 * (61 / 7) is 60.999..."""
    rng = np.random.default_rng(6)
    for patch_px, extent_px in [(7, 61), *rng.integers(1, 20_000, (cases(500, full=20_000), 2)).tolist()]:
        assert int(patch_px * _factor(extent_px, patch_px)) == extent_px


def test_without_spatialdata_an_export_for_lazyslide_is_refused_ahead(monkeypatch):
    config = FeaturesConfig(export_folder="out", export_layout="lazyslide")
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(ConfigError, match=r"'lazyslide': its zarr is written by spatialdata.*'distmil\[lazyslide\]'"):
        check_export(config)


def as_trident(path: Path, made: Made) -> None:
    assert path.parent.name == f"features_{made.encoder}"
    assert path.parents[1].name.endswith(f"x_{made.patch_px}px_{made.overlap_px}px_overlap")
    assert (path.parents[1] / "patches" / f"{made.slide_id}_patches.h5").is_file()
    with h5py.File(path) as file:
        assert file["coords"].dtype == np.int64
        assert file["features"].attrs["encoder"] == made.encoder
        assert file["coords"].attrs["patch_size_level0"] == made.extent_px
        assert file["coords"].attrs["overlap"] == made.overlap_px
        assert (file["coords"].attrs["level0_width"], file["coords"].attrs["level0_height"]) == made.size


def as_stamp(path: Path, made: Made) -> None:
    with h5py.File(path) as file:
        assert (file["coords"].dtype, file["feats"].dtype) == (np.float32, np.float16)
        assert file.attrs["unit"] == "um"
        assert file.attrs["stamp_version"] == "2.4.0"
        assert file.attrs["feat_type"] == "tile"
        assert np.allclose(file["coords"][()] / made.mpp, made.xy, atol=0.01)
        assert file.attrs["tile_size_um"] / file.attrs["tile_size_px"] == pytest.approx(made.patch_mpp)


def as_slide2vec(path: Path, made: Made) -> None:
    note = json.loads(path.with_name(f"{made.slide_id}.meta.json").read_text())
    assert (note["encoder_name"], note["tile_size_lv0"], note["num_tiles"]) == (
        made.encoder, made.extent_px, len(made.xy),
    )  # fmt: skip
    with np.load(path.parents[1] / "tiles" / f"{made.slide_id}.coordinates.npz") as columns:
        assert np.array_equal(columns["tile_index"], np.arange(len(made.xy)))
        assert np.array_equal(columns["x"], made.xy[:, 0])


@pytest.fixture
def made():
    rng = np.random.default_rng(5)
    return random_features(rng, width=6).but(mpp=0.25)


@pytest.mark.parametrize("writer", [write_clam, write_trident])
def test_bare_tensors_take_their_places_from_the_folder_patches(writer, made, tmp_path):
    found = read(writer(made, tmp_path, tensor=True), made)
    assert np.array_equal(np.stack([found[1].x_N, found[1].y_N], axis=1), made.xy)
    assert found[1].extent_px == made.extent_px


def test_slide2vec_before_sections(made, tmp_path):
    check(made, read(write_slide2vec(made, tmp_path, sections=False), made), layout="slide2vec")


def test_clam_without_patches_needs_the_extent(made, tmp_path):
    folder = write_clam(made, tmp_path)
    (folder / "patches" / f"{made.slide_id}.h5").unlink()
    with pytest.raises(Exception, match=r"features\.extent_px"):
        read(folder, made)
    assert read(folder, made, extent_px=made.extent_px)[1].extent_px == made.extent_px
    stated = {"edge_px": made.patch_px, "patch_mpp": made.patch_mpp}
    assert read(folder, made, **stated)[1].extent_px == made.extent_px


def test_stamp_before_its_attributes(made, tmp_path):
    """STAMP 1 stated tile_size; older ones stated nothing, some in multiples of 224 for 256 um."""
    extent_px = 1024
    xy = np.array([[0, 0], [1024, 0], [2048, 1024], [1024, 2048]])
    old = made.but(xy=xy, features=made.features[:4], extent_px=extent_px, mpp=0.25, patch_px=224)
    first = read(write_stamp(old, tmp_path / "a", attributes={"tile_size": 256.0, "unit": "um"}), old)
    bare = read(write_stamp(old, tmp_path / "b", attributes={}), old)
    historic_made = old.but(mpp=0.25 * 224 / 256)
    folder = write_stamp(historic_made, tmp_path / "c", attributes={})  # coordinates in steps of 224
    for _, placed, _ in (first, bare, read(folder, old)):
        assert np.array_equal(np.stack([placed.x_N, placed.y_N], axis=1), xy)
        assert placed.extent_px == extent_px
