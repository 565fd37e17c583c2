"""Score maps: patch scores spread over a thumbnail's pixels, and drawn over the thumbnail with a colour bar.

Arrays are indexed [row, column]; sizes and points are (width, height) and (x, y).
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from distmil.visualization.boxes import Boxes, sum_boxes

MIN_EDGE_PX = 480
"""A thumbnail whose longer edge is shorter is enlarged by a whole number."""
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
BAR_LABEL = "score"
ELLIPSIS = "..."
INK, MUTED, FRAME, PAPER = (20, 20, 20), (95, 95, 95), (200, 200, 200), (255, 255, 255)
SMOOTHING = 2  # outlines are drawn this much larger and reduced, for smooth edges

Values = NDArray[np.float64]
Indices = NDArray[np.intp]
Pixels = NDArray[np.uint8]

_JET = np.asarray(colormaps["jet"](np.linspace(0, 1, 256), bytes=True), np.uint8)[:, :3]


class Layout(NamedTuple):
    """Where the parts of a drawing lie, in px; boxes are (left, top, right, bottom)."""

    zoom: int
    font_px: int
    canvas: tuple[int, int]
    picture: tuple[int, int, int, int]
    bar: tuple[int, int, int, int]


def score_grid(
    x: ArrayLike,
    y: ArrayLike,
    extent_px: ArrayLike,
    score: ArrayLike,
    *,
    slide_size: tuple[int, int],
    map_size: tuple[int, int],
) -> NDArray[np.float32]:
    """Average the scores of the patches that cover each pixel of a map.

    Args:
        x: Left edges in level-0 pixels, N.
        y: Top edges in level-0 pixels, N.
        extent_px: Level-0 edge of every patch, or one for all.
        score: Scores in [0, 1], N.
        slide_size: Slide (width, height) in level-0 pixels; what hangs over is cut off.
        map_size: Map (width, height) in pixels.

    Returns:
        Mean scores, map height x width, NaN where no patch lies. A patch covers at least one pixel.

    Raises:
        ValueError: If lengths differ, an extent is not positive, or a score is outside [0, 1] or not finite.
    """
    x, y, score = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(score, np.float64)
    if not x.shape == y.shape == score.shape == (x.size,):
        raise ValueError(
            f"x, y and score must be lists of one length, not of shapes {x.shape}, {y.shape}, {score.shape}"
        )
    extent = np.broadcast_to(np.asarray(extent_px, np.float64), x.shape)
    if (extent <= 0).any():
        raise ValueError(f"extent_px must be positive, not {extent.min()}")
    _check_scores(score)
    left, right = _span(x, extent, slide_size[0], map_size[0])
    top, bottom = _span(y, extent, slide_size[1], map_size[1])
    boxes, shape = Boxes(left, top, right, bottom), (map_size[1], map_size[0])
    total, count = sum_boxes(boxes, score, shape), sum_boxes(boxes, 1, shape)
    grid = np.full(shape, np.nan, np.float32)
    covered = count > 0  # exact, while the total carries errors of about 1e-12, which must not leave the scores' range
    grid[covered] = (total[covered] / count[covered]).clip(score.min(initial=1), score.max(initial=0))
    return grid


def _check_scores(score: NDArray[np.floating]) -> None:
    """Raise ValueError if a score is not a number in [0, 1]."""
    wrong = score[~((score >= 0) & (score <= 1))]
    if wrong.size:
        raise ValueError(f"{wrong.size} of {score.size} scores lie outside [0, 1] or are not finite, e.g. {wrong[0]}")


def _span(start: Values, extent: Values, slide_px: int, map_px: int) -> tuple[Indices, Indices]:
    """Find each patch's first map pixel along an axis and the pixel after its last; equal where it is off the slide."""
    scale = map_px / slide_px
    first = np.rint(start * scale).clip(0, map_px - 1)
    last = np.rint((start + extent) * scale).clip(first + 1, map_px)
    is_inside = (start < slide_px) & (start + extent > 0)
    return first.astype(np.intp), np.where(is_inside, last, first).astype(np.intp)


def plan_layout(thumbnail_size: tuple[int, int], *, has_subtitle: bool) -> Layout:
    """Place title, picture and colour bar for a thumbnail of (width, height), so that none touches another."""
    zoom = max(1, math.ceil(MIN_EDGE_PX / max(thumbnail_size)))
    width, height = thumbnail_size[0] * zoom, thumbnail_size[1] * zoom
    font_px = min(max(max(width, height) // 48, 14), 36)
    area_width, area_height = max(width, 20 * font_px), max(height, 14 * font_px)
    area_top = round(font_px * (4.3 if has_subtitle else 2.7))
    left, top = font_px + (area_width - width) // 2, area_top + (area_height - height) // 2
    bar_left = 2 * font_px + area_width
    return Layout(
        zoom=zoom,
        font_px=font_px,
        canvas=(bar_left + 5 * font_px, area_top + area_height + font_px),
        picture=(left, top, left + width, top + height),
        bar=(bar_left, area_top + round(1.8 * font_px), bar_left + font_px, area_top + area_height),
    )


def render_map(
    thumbnail: Pixels,
    grid: NDArray[np.float32],
    *,
    title: str,
    subtitle: str = "",
    outlines: Sequence[Values] = (),
    opacity: float = 0.5,
) -> Image.Image:
    """Draw a score map over a slide's thumbnail, blue 0 to red 1, with a title and a colour bar.

    Args:
        thumbnail: RGB, H x W x 3.
        grid: Scores in [0, 1], H x W; the thumbnail shows untouched where they are NaN.
        title: First line; shortened with an ellipsis where it does not fit.
        subtitle: Second line, likewise.
        outlines: Rings in thumbnail pixels, each n x 2 (x, y), closed for drawing where open.
        opacity: Of the map, in [0, 1].

    Returns:
        RGB image; ``plan_layout`` says where the parts lie in it.

    Raises:
        ValueError: If the sizes differ, or a score is outside [0, 1] or infinite.
    """
    if thumbnail.shape != (*grid.shape, 3):
        raise ValueError(f"a thumbnail of shape {thumbnail.shape} does not fit a map of shape {grid.shape}")
    layout = plan_layout((grid.shape[1], grid.shape[0]), has_subtitle=bool(subtitle))
    picture = Image.fromarray(_overlay(thumbnail, grid, opacity).repeat(layout.zoom, 0).repeat(layout.zoom, 1))
    _draw_outlines(picture, [outline * layout.zoom for outline in outlines], line_px=layout.font_px / 4)
    canvas = Image.new("RGB", layout.canvas, PAPER)
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = layout.picture
    draw.rectangle((left - 1, top - 1, right, bottom), outline=FRAME)
    canvas.paste(picture, (left, top))
    _draw_text(draw, layout, title, line=0)
    _draw_text(draw, layout, subtitle, line=1)
    _draw_bar(canvas, layout)
    return canvas


def _overlay(thumbnail: Pixels, grid: NDArray[np.float32], opacity: float) -> Pixels:
    """Blend the map's colours into the thumbnail where the map has scores."""
    covered = ~np.isnan(grid)
    score = grid[covered]
    _check_scores(score)
    blended = thumbnail.copy()
    colour = _JET[np.rint(score * 255).astype(np.intp)]
    blended[covered] = np.rint(opacity * colour + (1 - opacity) * thumbnail[covered])
    return blended


def _draw_outlines(picture: Image.Image, outlines: Sequence[Values], *, line_px: float) -> None:
    """Draw closed outlines in place, black with a white core, which shows on any colour."""
    if not outlines:
        return
    for colour, breadth in (((0, 0, 0), line_px), ((255, 255, 255), 0.4 * line_px)):
        mask = Image.new("L", (picture.width * SMOOTHING, picture.height * SMOOTHING))
        draw = ImageDraw.Draw(mask)
        for outline in outlines:
            points = np.concatenate([outline, outline[:2]]) * SMOOTHING  # two, for a round joint where the ring closes
            draw.line([(x, y) for x, y in points.tolist()], 255, max(1, round(breadth * SMOOTHING)), joint="curve")
        picture.paste(colour, None, mask.reduce(SMOOTHING))


def _draw_text(draw: ImageDraw.ImageDraw, layout: Layout, text: str, *, line: int) -> None:
    """Write one line above the picture, the second one smaller, shortened to the canvas."""
    font = ImageFont.load_default(round(layout.font_px * (1.2, 0.95)[line]))
    text, space = " ".join(text.split()), layout.canvas[0] - 2 * layout.font_px
    if font.getlength(text) > space:
        while text and font.getlength(text + ELLIPSIS) > space:
            text = text[:-1]
        text = text.rstrip() + ELLIPSIS
    baseline = round(layout.font_px * (1.9, 3.4)[line])
    draw.text((layout.font_px, baseline), text, (INK, MUTED)[line], font, anchor="ls")


def _draw_bar(canvas: Image.Image, layout: Layout) -> None:
    """Draw the colour bar, 1 on top, with its ticks and label."""
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(layout.font_px)
    left, top, right, bottom = layout.bar
    column = _JET[np.rint(np.linspace(255, 0, bottom - top)).astype(np.intp)]
    canvas.paste(Image.fromarray(column[:, None].repeat(right - left, axis=1)), (left, top))
    draw.rectangle((left - 1, top - 1, right, bottom), outline=INK)
    for tick in TICKS:
        row = round(bottom - 1 - tick * (bottom - 1 - top))
        draw.line((right, row, right + layout.font_px // 3, row), INK)
        draw.text((right + layout.font_px // 2, row), f"{tick:g}", INK, font, anchor="lm")
    draw.text((left, top - layout.font_px), BAR_LABEL, INK, font, anchor="lm")


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG: the same bytes for the same pixels, and nothing but pixels."""
    bare = image.copy()
    bare.info.clear()
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=4)
    return file.getvalue()
