"""Features of LazySlide in a SpatialData zarr, read and written: tiles as its shapes, features as an AnnData's matrix.

Source: wsidata, ``io/_elems.py`` and ``_model/tile.py``.
"""

import importlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmil.errors import ConfigError
from distmil.features.contents import Contents, Header, checked_contents, odd, positive, whole
from distmil.features.slide_table import SlideTable

TILES = "tiles"
NEEDS_ZARR = "LazySlide's features are in zarr, which needs a package: pip install 'distmil[lazyslide]'"
NEEDS_SPATIALDATA = (
    "features.export_layout = 'lazyslide': its zarr is written by spatialdata, which needs a package: "
    "pip install 'distmil[lazyslide]'"
)
_LIBRARIES = ("anndata", "geopandas", "shapely", "pandas", "spatialdata", "spatialdata.models")


@contextmanager
def open_lazyslide(path: Path, *, encoder: str | None) -> Iterator[Contents]:
    """Open a slide's features of one encoder, the only one where none is named.

    Raises:
        UnreadableSlide: If they are not there.
        ConfigError: If zarr is not installed.
    """
    try:
        zarr: Any = importlib.import_module("zarr")
    except ImportError as error:
        raise ConfigError(NEEDS_ZARR) from error
    try:
        root = zarr.open_group(str(path), mode="r")
        tables = sorted(name for name, _ in root["tables"].groups() if name.endswith(f"_{TILES}"))
    except (OSError, KeyError, ValueError) as error:
        raise odd("the zarr cannot be read, or has no tables of features") from error
    table = _choose([name.removesuffix(f"_{TILES}") for name in tables], encoder)
    try:
        yield _contents(root, path, table)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise odd(f"the zarr lacks {str(error)[:100]}") from error


def _choose(encoders: list[str], wanted: str | None) -> str:
    """Choose the encoder. Raises: UnreadableSlide."""
    if not encoders:
        raise odd("the zarr has no features of tiles (tables/<encoder>_tiles)")
    if wanted is None and len(encoders) > 1:
        raise odd(f"the zarr has features of {', '.join(encoders)}; choose one by features.encoder")
    if wanted is not None and wanted not in encoders:
        raise odd(f"the zarr has features of {', '.join(encoders)}, none of {wanted}")
    return wanted or encoders[0]


def _contents(root: Any, path: Path, encoder: str) -> Contents:
    table = root[f"tables/{encoder}_{TILES}"]
    if not hasattr(table["X"], "shape"):
        raise odd("its features are a sparse matrix; expected a dense one")
    tiles = pq.read_table(path / "shapes" / TILES / "shapes.parquet", columns=["tile_id", "x", "y"])
    row_of = {str(tile): row for row, tile in enumerate(tiles["tile_id"].to_pylist())}
    asked = [_text(tile) for tile in _column(table["obs"]["tile_id"])]
    if unknown := [tile for tile in asked if tile not in row_of]:
        raise odd(f"{len(unknown)} embeddings are of tiles that are not there, such as {unknown[0]}")
    rows = [row_of[tile] for tile in asked]
    place_N2 = np.stack([tiles[name].to_numpy() for name in ("x", "y")], axis=1)[rows]
    attributes = dict(root.attrs)
    spec = attributes.get("tile_spec", {}).get(TILES, {})
    slide = attributes.get("slide_properties", {})
    if spec.get("height") != spec.get("width"):
        raise odd(f"its tiles are {spec.get('width')} x {spec.get('height')} px; expected squares")
    factor = positive(spec, "base_downsample") or 1.0  # from the tile's own pixels to level 0
    edge, step = positive(spec, "width"), positive(spec, "stride_width")
    shape = slide.get("shape") or [None, None]
    header = Header(
        "lazyslide", 0, 0, encoder, whole(spec, "width"), positive(spec, "mpp"),
        edge and float(int(edge * factor)), step and float(int(step * factor)), slide_mpp=positive(slide, "mpp"),
        size=(int(shape[1]), int(shape[0])) if all(shape) else None,
    )  # fmt: skip
    return checked_contents(header, place_N2, table["X"], names=("x and y", "X"))


def _column(values: Any) -> Any:
    """Read a column of an AnnData: an array, or codes with their categories."""
    if hasattr(values, "shape"):
        return values[:]
    return values["categories"][:][values["codes"][:]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def check_spatial_data() -> None:
    """Check that the libraries of the writer are there. Raises: ConfigError."""
    try:
        for name in _LIBRARIES:
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(NEEDS_SPATIALDATA) from error


def write_spatial_data(table: SlideTable, folder: Path) -> Path:
    """Write ``<slide>.zarr`` beside its place, and rename it; an earlier one is replaced.

    Raises:
        OSError: If it cannot be written.
        ConfigError: If spatialdata is not installed.
    """
    check_spatial_data()
    folder.mkdir(parents=True, exist_ok=True)
    target, umask = folder / f"{table.slide_id}.zarr", os.umask(0)
    os.umask(umask)
    with tempfile.TemporaryDirectory(prefix=f".{table.slide_id}.", dir=folder) as scratch:
        made = Path(scratch) / target.name
        _spatial_data(table).write(made)
        made.chmod(0o777 & ~umask)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def _spatial_data(table: SlideTable) -> Any:
    """Put a slide's elements together. Rows of the table name their tile."""
    anndata, geopandas, shapely, pandas, spatialdata, models = map(importlib.import_module, _LIBRARIES)
    tiles, x_N, y_N = np.arange(len(table.x_N)), table.x_N.astype(np.int64), table.y_N.astype(np.int64)
    boxes = shapely.box(x_N, y_N, x_N + table.extent_px, y_N + table.extent_px)
    places = {"tile_id": tiles, "x": x_N, "y": y_N, "tissue_id": np.zeros_like(tiles)}
    shapes = models.ShapesModel.parse(geopandas.GeoDataFrame(places, geometry=boxes))
    library = pandas.Categorical.from_codes(np.zeros_like(tiles), _texts(pandas, [TILES]))
    rows = pandas.DataFrame({"tile_id": tiles, "library_id": library}, index=_texts(pandas, tiles))
    columns = pandas.DataFrame(index=_texts(pandas, range(table.embedding_NE.shape[1])))
    features = anndata.AnnData(X=table.embedding_NE.astype(np.float32), obs=rows, var=columns)
    features = models.TableModel.parse(features, region=TILES, region_key="library_id", instance_key="tile_id")
    return spatialdata.SpatialData(
        shapes={TILES: shapes}, tables={f"{table_word(table.encoder)}_{TILES}": features}, attrs=_attributes(table)
    )


def _texts(pandas: Any, values: Iterable[object]) -> Any:
    """Return texts as Python's: anndata does not write those of pandas' own kind."""
    return pandas.Index([str(value) for value in values], dtype=object)


def table_word(encoder: str) -> str:
    """Write an encoder's name so that it can be a table's: letters, digits and ``_ - .`` alone."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", encoder)


def _attributes(table: SlideTable) -> dict[str, Any]:
    """Describe the tiles and the slide. Tiles are cut at level 0, and are smaller by ``base_downsample``."""
    factor, step = _factor(table.extent_px, table.patch_px), table.stride_px or table.patch_px
    tiles = {
        "height": table.patch_px, "width": table.patch_px, "stride_height": step, "stride_width": step,
        "mpp": table.patch_mpp, "ops_level": 0, "ops_downsample": factor, "base_level": 0, "base_downsample": factor,
        "tissue_name": "tissues",
    }  # fmt: skip
    width, height = table.size
    slide = {
        "shape": [height, width], "n_level": 1, "level_shape": [[height, width]], "level_downsample": [1.0],
        "mpp": table.mpp, "magnification": table.mpp and max(1, round(10 / table.mpp)), "bounds": [0, 0, width, height],
    }  # fmt: skip
    return {"tile_spec": {TILES: tiles}, "slide_properties": slide}


def _factor(extent_px: int, patch_px: int) -> float:
    """Divide so that multiplying and cutting off, as LazySlide does, gives the extent back."""
    factor = extent_px / patch_px
    while int(patch_px * factor) < extent_px:
        factor = math.nextafter(factor, math.inf)
    return factor
