"""Exports of one slide for a notebook: arguments checked, files written whole, no store."""

from pathlib import Path
from typing import get_args

import pyarrow as pa

from distmil.errors import ConfigError
from distmil.exporting.frame import Origin, frame_of
from distmil.exporting.geojson import pack
from distmil.exporting.scores import scored_patches
from distmil.exporting.slide_export import SlideExport
from distmil.storage.local_files import write_outside
from distmil.visualization.colours import Colours


def open_export(
    slide_id: str,
    table: pa.Table,
    *,
    size: tuple[int, int],
    bounds: tuple[int, int, int, int] | None,
    mpp: float | None,
    abnormal: str,
    threshold: float,
    target: str | None,
    min_area_mm2: float = 0.0,
    origin: Origin = "auto",
    downsample: int | None = None,
    colours: Colours = "jet",
) -> SlideExport:
    """Make the export of a slide's patch predictions.

    Args:
        slide_id: Names the slide.
        table: Its patch predictions.
        size: Slide (width, height) in level-0 pixels.
        bounds: The scanned area, None where the slide states none.
        mpp: Um per level-0 pixel.
        abnormal: Name of the second class of two.
        threshold: Probability from which a patch is abnormal.
        target: Class whose probability counts; None: any that is not normal.
        min_area_mm2: Smaller regions are left out.
        origin: Where (0, 0) is; see ``frame_of``.
        downsample: Level-0 pixels per pixel of a colour map.
        colours: Of a colour map.

    Raises:
        ConfigError: If a value is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold = {threshold!r}: expected a probability, 0 to 1")
    if not min_area_mm2 >= 0:
        raise ConfigError(f"min_area_mm2 = {min_area_mm2!r}: expected mm2, 0 or more")
    if origin not in get_args(Origin):
        raise ConfigError(f"origin = {origin!r}: expected {', '.join(get_args(Origin))}")
    if colours not in get_args(Colours):
        raise ConfigError(f"colours = {colours!r}: expected {' or '.join(get_args(Colours))}")
    if downsample is not None and downsample < 1:
        raise ConfigError(f"downsample = {downsample!r}: expected at least 1 level-0 pixel per pixel")
    return SlideExport(
        slide_id,
        scored_patches(table, abnormal=abnormal, target=target),
        frame_of(size, bounds, origin=origin),
        mpp,
        threshold,
        min_area_mm2=min_area_mm2,
        colours=colours,
        downsample=downsample,
    )


def write_geojson(path: str | Path, export: SlideExport, *, with_patches: bool) -> Path:
    """Write regions or patches, packed where the file's name ends in ``.gz``. Raises: OSError."""
    data = export.patches_geojson() if with_patches else export.regions_geojson()
    return write_outside(Path(path).expanduser(), pack(data) if str(path).lower().endswith(".gz") else data)
