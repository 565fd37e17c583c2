"""The three maps of a slide: attention, probability and fused, laid over its overview with its outlines."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from distmil.cohort import Slide
from distmil.errors import SlideError
from distmil.heatmaps import encode_png, render_map, score_grid
from distmil.slides.annotations import read_annotation
from distmil.slides.reader import open_slide, overview

logger = logging.getLogger(__name__)

MAPS = ("attention", "probability", "fused")


def draw_maps(
    slide: Slide, patches: pa.Table, *, size: tuple[int, int], subtitle: str, max_px: int, reader: str
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and PNG of each map.

    Args:
        slide: The slide; its outlines are drawn in where it has any.
        patches: Its patch predictions.
        size: Slide (width, height) in level-0 pixels.
        subtitle: A line under the title.
        max_px: Longer edge of the overview.
        reader: ``tiling.reader``.
    """
    thumbnail, scale = _thumbnail(slide, size=size, max_px=max_px, reader=reader)
    map_size = (thumbnail.shape[1], thumbnail.shape[0])
    outlines = [points / scale for points in _drawable(slide, size)]
    covered = (round(map_size[0] * scale), round(map_size[1] * scale))
    for name in MAPS:
        grid = score_grid(
            patches["x"].to_numpy(),
            patches["y"].to_numpy(),
            patches["extent_px"].to_numpy(),
            patches[name].to_numpy(),
            slide_size=covered,
            map_size=map_size,
        )
        title = f"{slide.slide_id}: {name}"
        yield name, encode_png(render_map(thumbnail, grid, title=title, subtitle=subtitle, outlines=outlines))


def _thumbnail(slide: Slide, *, size: tuple[int, int], max_px: int, reader: str) -> tuple[NDArray[np.uint8], float]:
    """Return the slide's overview and its reduction; a white one where the file cannot be read any more."""
    try:
        with open_slide(slide.path, reader=reader) as image:
            return overview(image, max_px=max_px)
    except SlideError as error:
        logger.warning("%s: its maps are drawn on white (%s)", slide.slide_id, error)
        scale = max(1.0, max(size) / max_px)
        return np.full((math.ceil(size[1] / scale), math.ceil(size[0] / scale), 3), 255, np.uint8), scale


def _drawable(slide: Slide, size: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return the outlines; none where they cannot be read."""
    try:
        return read_outlines(slide, size)
    except (SlideError, OSError) as error:
        logger.warning("%s: its outlines are not drawn (%s)", slide.slide_id, error)
        return []


def read_outlines(slide: Slide, size: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return the rings of a slide's outlines in level-0 pixels, N x 2 each; none if it has none.

    Raises:
        AnnotationError: If the annotation cannot be read.
        OSError: If it is gone.
    """
    if slide.annotation_path is None:
        return []
    regions = read_annotation(Path(slide.annotation_path), slide_size=size).regions.values()
    polygons = [part for region in regions for part in shapely.get_parts(region)]
    return [np.asarray(ring.coords) for part in polygons for ring in (part.exterior, *part.interiors)]
