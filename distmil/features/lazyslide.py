"""Features of LazySlide in a SpatialData zarr: tiles as a Parquet table, features as an AnnData's matrix."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distmil.errors import ConfigError
from distmil.features.contents import Contents, Header, checked_contents, odd, positive, whole

TILES = "tiles"
NEEDS_ZARR = "LazySlide's features are in zarr, which needs a package: pip install 'distmil[lazyslide]'"


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
