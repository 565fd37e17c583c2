"""The three maps of a slide: attention, probability and fused, laid over its overview with its outlines."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from PIL import Image

from distmil.annotations.outlines import Annotation
from distmil.cohort import Slide
from distmil.errors import SlideError
from distmil.slides.image import overview
from distmil.slides.reader import open_slide
from distmil.visualization.heatmap import encode_png, render_map, score_grid

MAPS = ("attention", "probability", "fused")


@dataclass(frozen=True)
class Drawn:
    """The maps of a slide as PNG by name, and what a person who looks at them should know."""

    images: Mapping[str, bytes]
    doubts: Sequence[str]


def draw_maps(
    slide: Slide,
    patches: pa.Table,
    *,
    outlines: Callable[[], Annotation | None],
    size: tuple[int, int],
    subtitle: str,
    max_px: int,
    reader: str,
) -> Drawn:
    """Draw every map of a slide.

    Args:
        slide: The slide.
        patches: Its patch predictions.
        outlines: Reads its annotation, None if it has none; may raise SlideError and OSError.
        size: Slide (width, height) in level-0 pixels.
        subtitle: A line under the title.
        max_px: Longer edge of the overview.
        reader: ``tiling.reader``.
    """
    doubts: list[str] = []
    images: dict[str, bytes] = {}
    thumbnail, scale = _thumbnail(slide, size=size, max_px=max_px, reader=reader, doubts=doubts)
    rings = [point_N2 / scale for point_N2 in _drawable(outlines, doubts)]
    for name in MAPS:
        title = f"{slide.slide_id}: {name}"
        drawn = draw_map(name, patches, thumbnail, scale=scale, title=title, subtitle=subtitle, outlines=rings)
        images[name] = encode_png(drawn)
    return Drawn(images, doubts)


def draw_map(
    name: str,
    patches: pa.Table,
    thumbnail: NDArray[np.uint8],
    *,
    scale: float,
    title: str,
    subtitle: str = "",
    outlines: Sequence[NDArray[np.float64]] = (),
) -> Image.Image:
    """Draw one map of a slide.

    Args:
        name: One of ``MAPS``, a column of ``patches``.
        patches: Patch predictions: x, y, extent_px in level-0 pixels, and the score within 0 and 1.
        thumbnail: The slide's overview, RGB, H x W x 3.
        scale: Level-0 pixels per pixel of it.
        title: First line.
        subtitle: Second line.
        outlines: Rings in pixels of the thumbnail, each n x 2 (x, y).
    """
    map_size = (thumbnail.shape[1], thumbnail.shape[0])
    grid = score_grid(
        patches["x"].to_numpy(),
        patches["y"].to_numpy(),
        patches["extent_px"].to_numpy(),
        patches[name].to_numpy(),
        slide_size=(round(map_size[0] * scale), round(map_size[1] * scale)),
        map_size=map_size,
    )
    return render_map(thumbnail, grid, title=title, subtitle=subtitle, outlines=outlines)


def subtitle_of(row: Mapping[str, Any], *, slide_score: str, threshold: float) -> str:
    """Word a slide's prediction for the line under a map's title: read-out, threshold and class."""
    return f"{slide_score} {row['probability']:.3f} (threshold {threshold:.3f}): {row['predicted']}"


def _thumbnail(
    slide: Slide, *, size: tuple[int, int], max_px: int, reader: str, doubts: list[str]
) -> tuple[NDArray[np.uint8], float]:
    """Read the slide's overview and its reduction; a white overview, and a doubt, where the file cannot be read now."""
    try:
        with open_slide(slide.path, reader=reader) as image:
            return overview(image, max_px=max_px)
    except SlideError as error:
        doubts.append(f"its maps are drawn on white: {error}")
        scale = max(1.0, max(size) / max_px)
        return np.full((math.ceil(size[1] / scale), math.ceil(size[0] / scale), 3), 255, np.uint8), scale


def _drawable(outlines: Callable[[], Annotation | None], doubts: list[str]) -> list[NDArray[np.float64]]:
    """Read the outlines; none, and a doubt, where they cannot be read."""
    try:
        return rings_of(outlines())
    except (SlideError, OSError) as error:
        reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else error
        doubts.append(f"its outlines are not drawn in its maps: {reason}")
        return []


def rings_of(annotation: Annotation | None) -> list[NDArray[np.float64]]:
    """List the rings of an annotation's outlines in level-0 pixels, N x 2 each."""
    if annotation is None:
        return []
    polygons = [part for region in annotation.regions.values() for part in shapely.get_parts(region)]
    return [np.asarray(ring.coords) for part in polygons for ring in (part.exterior, *part.interiors)]
