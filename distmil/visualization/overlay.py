"""The picture of a map, without its frame: scores over a slide's thumbnail, contours, outlines and a scale bar.

Arrays are indexed [row, column]; points are (x, y).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distmil.visualization.colours import OPACITY, Colours, Pixels, blend

MIN_EDGE_PX = 480
"""A thumbnail whose longer edge is shorter is enlarged by a whole number."""
OUTLINE = ((255, 255, 255), (0, 0, 0))
"""Core and edge of an annotation's outlines, which show on any colour."""
PREDICTED, SCORED = (0, 0, 0), (125, 125, 125)
_SMOOTHING = 2  # outlines are drawn this much larger and reduced, for smooth edges

Mask = NDArray[np.bool_]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class MapBase:
    """What all maps of a slide are drawn on."""

    thumbnail: Pixels
    """RGB, H x W x 3."""
    scored: Mask
    """H x W: where patches were scored. A thin grey line runs around it."""
    predicted: Mask
    """H x W: where patches are predicted abnormal. A black line runs around it."""
    outlines: Sequence[NDArray[np.float64]] = ()
    """Annotated rings in thumbnail pixels, each n x 2 (x, y), closed for drawing where open."""
    um_per_px: float | None = None
    """Um per thumbnail pixel, for the scale bar."""

    @property
    def zoom(self) -> int:
        """Picture pixels per thumbnail pixel."""
        edge: int = max(self.thumbnail.shape[:2])
        return max(1, math.ceil(MIN_EDGE_PX / edge))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return self.thumbnail.shape[1] * self.zoom, self.thumbnail.shape[0] * self.zoom


def font_px(size: tuple[int, int]) -> int:
    """Choose the height of letters for a picture of (width, height), in pixels."""
    return min(max(max(size) // 48, 14), 36)


def paint(
    base: MapBase, grid: NDArray[np.floating] | None, *, colours: Colours = "jet", opacity: float = OPACITY
) -> Image.Image:
    """Draw the picture of a map; without scores, the thumbnail with outlines and scale bar.

    Args:
        base: Thumbnail, contours, outlines and resolution.
        grid: Scores in [0, 1], H x W, NaN where there is none; None: no scores and no contours.
        colours: Name of the colours.
        opacity: Of the score 1.

    Raises:
        ValueError: If the sizes differ, or a score is outside [0, 1] or infinite.
    """
    pixels = base.thumbnail
    if grid is not None:
        if pixels.shape != (*grid.shape, 3):
            raise ValueError(f"a thumbnail of shape {pixels.shape} does not fit a map of shape {grid.shape}")
        pixels = blend(pixels, grid, colours=colours, opacity=opacity)
    pixels = _enlarged(pixels, base.zoom)
    letter = font_px(base.size)
    if grid is not None:
        pixels[_rim(_enlarged(base.scored, base.zoom), 1)] = SCORED
        pixels[_rim(_enlarged(base.predicted, base.zoom), max(1, letter // 8))] = PREDICTED
    picture = Image.fromarray(pixels)
    draw_outlines(picture, [outline * base.zoom for outline in base.outlines], line_px=letter / 4)
    if base.um_per_px is not None:
        _draw_scale_bar(picture, base.um_per_px / base.zoom, letter)
    return picture


def _enlarged(array: NDArray[_Scalar], times: int) -> NDArray[_Scalar]:
    return array.repeat(times, axis=0).repeat(times, axis=1)


def _rim(mask: Mask, line_px: int) -> Mask:
    """Mark the pixels just outside a mask."""
    kernel = np.ones((2 * line_px + 1, 2 * line_px + 1), np.uint8)
    return np.asarray((cv2.dilate(mask.astype(np.uint8), kernel) > 0) & ~mask)


def draw_outlines(picture: Image.Image, outlines: Sequence[NDArray[np.float64]], *, line_px: float) -> None:
    """Draw closed outlines in place, a light core with a dark edge.

    Args:
        picture: RGB.
        outlines: Rings in its pixels, each n x 2 (x, y).
        line_px: Breadth of the line with its edge.
    """
    if not outlines:
        return
    core, edge = OUTLINE
    for colour, breadth in ((edge, line_px), (core, 0.4 * line_px)):
        mask = Image.new("L", (picture.width * _SMOOTHING, picture.height * _SMOOTHING))
        draw = ImageDraw.Draw(mask)
        for outline in outlines:
            points = np.concatenate([outline, outline[:2]]) * _SMOOTHING  # two, for a round joint where the ring closes
            draw.line([(x, y) for x, y in points.tolist()], 255, max(1, round(breadth * _SMOOTHING)), joint="curve")
        picture.paste(colour, None, mask.reduce(_SMOOTHING))


def scale_bar_um(width_um: float) -> float:
    """Choose the longest bar of 1, 2 or 5 times a power of ten that is at most a quarter of a width, in um."""
    most = width_um / 4
    power = 10.0 ** math.floor(math.log10(most))
    return max(times * power for times in (1, 2, 5) if times * power <= most)


def _draw_scale_bar(picture: Image.Image, um_per_px: float, letter: int) -> None:
    """Draw a bar with its length in the lower left corner, in place; nothing where there is no room."""
    length_um = scale_bar_um(picture.width * um_per_px)
    bar_px = round(length_um / um_per_px)
    if picture.height < 6 * letter or bar_px < letter:
        return
    text = f"{length_um / 1000:g} mm"
    font = ImageFont.load_default(letter)
    draw = ImageDraw.Draw(picture)
    left, bottom = letter, picture.height - letter
    width = max(bar_px, math.ceil(font.getlength(text)))
    draw.rectangle((left - letter // 2, bottom - 2 * letter, left + width + letter // 2, bottom + letter // 2), "white")
    draw.rectangle((left, bottom - letter // 3, left + bar_px - 1, bottom), "black")
    draw.text((left, bottom - letter // 2), text, "black", font, anchor="ls")
