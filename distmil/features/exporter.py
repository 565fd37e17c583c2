"""Embeddings of the store as the files of other tools: written under a temporary name and renamed, their notes last.

N patches of the slide, E numbers a patch.
"""

import importlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from distmil.config.features import FeaturesConfig
from distmil.errors import ConfigError, NoResolution, StorageError
from distmil.features.lazyslide import check_spatial_data, write_spatial_data
from distmil.features.slide2vec import NOTE, files_of_tiles
from distmil.features.slide_table import SlideTable
from distmil.storage.local_files import write_outside

Columns = Mapping[str, tuple[NDArray[Any], Mapping[str, Any], int | None]]
"""Data sets of an HDF5 file: values, attributes, and rows a chunk."""
_CLAM_CHUNK = 32


def check_export(config: FeaturesConfig) -> None:
    """Refuse an export without a folder, or without its libraries. Raises: ConfigError."""
    if config.export_folder is None or "://" in config.export_folder:
        raise ConfigError(f"features.export_folder = {config.export_folder!r}: set it to a folder to write into")
    if config.export_layout == "lazyslide":
        check_spatial_data()


def export_slide(table: SlideTable, folder: Path, *, layout: str, stamp_version: str) -> Path:
    """Write a slide's files, and return the file of its embeddings.

    Raises:
        NoResolution: If the layout is in um, and nobody knows the slide's um per pixel.
        StorageError: If the folder cannot be written.
    """
    try:
        if layout == "clam":
            return _clam(table, folder)
        if layout == "trident":
            return _trident(table, folder)
        if layout == "lazyslide":
            return write_spatial_data(table, folder)
        return _stamp(table, folder, stamp_version) if layout == "stamp" else _slide2vec(table, folder)
    except OSError as error:
        raise StorageError(f"features.export_folder cannot be written: {error.strerror or error}") from error


def _clam(table: SlideTable, folder: Path) -> Path:
    """Write ``patches/`` (int64 coordinates, sizes), ``pt_files/`` and ``h5_files/`` (int32, no attributes)."""
    places_N2, name = _places(table), table.slide_id
    size = np.asarray(table.size, np.int64)
    attributes = {
        "patch_size": table.extent_px, "patch_level": 0, "downsample": np.ones(2), "downsampled_level_dim": size,
        "level_dim": size, "name": name, "save_path": "patches",
    }  # fmt: skip
    matrix_NE = table.embedding_NE.astype(np.float32)
    _write_hdf5(folder / "patches" / f"{name}.h5", {"coords": (places_N2, attributes, _CLAM_CHUNK)})
    write_outside(folder / "pt_files" / f"{name}.pt", _tensor(matrix_NE))
    path = folder / "h5_files" / f"{name}.h5"
    columns: Columns = {
        "features": (matrix_NE, {}, _CLAM_CHUNK),
        "coords": (places_N2.astype(np.int32), {}, _CLAM_CHUNK),
    }
    return _write_hdf5(path, columns)


def _trident(table: SlideTable, folder: Path) -> Path:
    """Write ``<mag>x_<px>px_<overlap>px_overlap/`` with ``patches/`` and ``features_<encoder>/``."""
    power = _power(table.patch_mpp)
    overlap = max(0, table.patch_px - (table.stride_px or table.patch_px))
    home = folder / f"{power or 0}x_{table.patch_px}px_{overlap}px_overlap"
    attributes = {
        "patch_size": table.patch_px, "patch_size_level0": table.extent_px, "level0_magnification": _power(table.mpp),
        "target_magnification": power, "overlap": overlap, "name": table.slide_id, "savetodir": home.name,
        "level0_width": table.size[0], "level0_height": table.size[1],
    }  # fmt: skip
    attributes = {name: "None" if value is None else value for name, value in attributes.items()}
    places = (_places(table), attributes, 1)
    named = {"name": table.slide_id, "savetodir": home.name, "encoder": table.encoder}
    _write_hdf5(home / "patches" / f"{table.slide_id}_patches.h5", {"coords": places})
    path = home / f"features_{table.encoder}" / f"{table.slide_id}.h5"
    return _write_hdf5(path, {"features": (table.embedding_NE, named, 1), "coords": places})


def _stamp(table: SlideTable, folder: Path, version: str) -> Path:
    """Write ``<extractor>/<slide>.h5``: half precision, coordinates in um."""
    if table.mpp is None:
        raise NoResolution("STAMP's coordinates are in um, and nobody knows the slide's um per pixel; give it in mpp")
    places_N2 = (_places(table) * table.mpp).astype(np.float32)
    attributes = {
        "stamp_version": version, "extractor": table.encoder, "unit": "um", "tile_size_um": table.extent_px * table.mpp,
        "tile_size_px": table.patch_px, "code_hash": "", "feat_type": "tile",
    }  # fmt: skip
    path = folder / table.encoder / f"{table.slide_id}.h5"
    return _write_hdf5(path, {"coords": (places_N2, {}, None), "feats": (table.embedding_NE, {}, None)}, attributes)


def _slide2vec(table: SlideTable, folder: Path) -> Path:
    """Write ``tiles/`` and ``tile_embeddings/``, whose note comes last."""
    count, width = table.embedding_NE.shape
    tiling = {
        "requested_tile_size_px": table.patch_px, "requested_spacing_um": table.patch_mpp,
        "tile_size_lv0": table.extent_px, "n_tiles": count,
        "step_px_lv0": round(table.extent_px * (table.stride_px or table.patch_px) / table.patch_px),
    }  # fmt: skip
    slide = {"dimensions": list(table.size), "base_spacing_um": table.mpp}
    places = {"provenance": {"sample_id": table.slide_id}, "slide": slide, "tiling": tiling}
    for ending, data in files_of_tiles(table.x_N, table.y_N, table.tissue_N, places).items():
        write_outside(folder / "tiles" / f"{table.slide_id}{ending}", data)
    path = folder / "tile_embeddings" / f"{table.slide_id}.pt"
    note = {
        "artifact_type": "tile_embeddings", "sample_id": table.slide_id, "format": "pt", "feature_dim": width,
        "num_tiles": count, "encoder_name": table.encoder, "feature_dtype": "float16", **tiling,
    }  # fmt: skip
    path.with_name(f"{table.slide_id}{NOTE}").unlink(missing_ok=True)
    write_outside(path, _tensor(table.embedding_NE))
    write_outside(path.with_name(f"{table.slide_id}{NOTE}"), json.dumps(note, indent=2, sort_keys=True).encode())
    return path


def _places(table: SlideTable) -> NDArray[np.int64]:
    return np.stack([table.x_N, table.y_N], axis=1).astype(np.int64)


def _power(mpp: float | None) -> int | None:
    """Name the magnification, as TRIDENT does: 10 um per pixel are 1x."""
    return max(1, round(10 / mpp)) if mpp else None


def encoder_word(name: str) -> str:
    """Write an encoder's name so that it can be a folder's."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)


def _tensor(matrix_NE: NDArray[Any]) -> bytes:
    torch = importlib.import_module("torch")  # takes seconds to import, and only tensors need it
    file = io.BytesIO()
    torch.save(torch.from_numpy(matrix_NE.copy()), file)
    return file.getvalue()


def _write_hdf5(path: Path, columns: Columns, attributes: Mapping[str, Any] | None = None) -> Path:
    """Write data sets and the file's own attributes."""
    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        out.attrs.update(attributes or {})
        for name, (values, notes, rows) in columns.items():
            chunks = None if rows is None else (min(rows, max(1, len(values))), *values.shape[1:])
            maxshape = None if rows is None else (None, *values.shape[1:])
            out.create_dataset(name, data=values, chunks=chunks, maxshape=maxshape).attrs.update(notes)
    return write_outside(path, file.getvalue())
