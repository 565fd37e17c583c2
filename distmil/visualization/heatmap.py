"""Score maps framed for people: title, pictures, colour bar and legend. Boxes are (left, top, right, bottom) in px."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distmil.visualization.colours import Colours, blend
from distmil.visualization.overlay import PREDICTED, SCORED, draw_outlines, font_px

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
BAR_LABEL = "score"
ELLIPSIS = "..."
INK, MUTED, FRAME, PAPER = (20, 20, 20), (95, 95, 95), (200, 200, 200), (255, 255, 255)

Box = tuple[int, int, int, int]


class Panel(NamedTuple):
    """A picture, and the words above it where there are several."""

    picture: Image.Image
    caption: str = ""


class Key(NamedTuple):
    """A line of the legend."""

    kind: Literal["annotated", "predicted", "scored"]
    text: str


@dataclass(frozen=True)
class Frame:
    """Everything around the pictures."""

    title: str
    """First line; shortened with an ellipsis where it does not fit."""
    subtitle: str = ""
    """Second line, likewise."""
    legend: Sequence[Key] = ()
    colours: Colours = "jet"


class Layout(NamedTuple):
    """Where the parts of a drawing lie."""

    font_px: int
    canvas: tuple[int, int]
    pictures: tuple[Box, ...]
    bar: Box
    legend_top: int


def plan_layout(
    size: tuple[int, int],
    *,
    num_panels: int = 1,
    has_subtitle: bool = False,
    has_captions: bool = False,
    num_keys: int = 0,
) -> Layout:
    """Place title, pictures, colour bar and legend, so that none touches another.

    Args:
        size: Width and height of each picture.
        num_panels: Number of pictures; their rows and columns, all full, make the whole as square as can be.
        has_subtitle: There is a second line.
        has_captions: Each picture has words above it.
        num_keys: Lines of the legend.
    """
    letter = font_px(size)
    cell = max(size[0], 20 * letter), max(size[1], 14 * letter) + round(1.7 * letter) * has_captions
    full = [n for n in range(1, num_panels + 1) if num_panels % n == 0]
    columns = min(full, key=lambda n: abs(math.log(n * n * cell[0] / (num_panels * cell[1]))))
    rows = num_panels // columns
    top = round(letter * (4.3 if has_subtitle else 2.7))
    pictures = []
    for index in range(num_panels):
        row, column = divmod(index, columns)
        left = letter + column * (cell[0] + letter) + (cell[0] - size[0]) // 2
        upper = top + (row + 1) * cell[1] + row * letter - size[1] - (0 if has_captions else (cell[1] - size[1]) // 2)
        pictures.append((left, upper, left + size[0], upper + size[1]))
    bar_left, bottom = letter + columns * (cell[0] + letter), top + rows * (cell[1] + letter) - letter
    bar_bottom = min(bottom, top + 40 * letter)
    legend_top = bottom + letter
    return Layout(
        font_px=letter,
        canvas=(bar_left + 5 * letter, legend_top + round(1.5 * letter * num_keys) + letter * (num_keys > 0)),
        pictures=tuple(pictures),
        bar=(bar_left, top + round(1.8 * letter), bar_left + letter, bar_bottom),
        legend_top=legend_top,
    )


def render(panels: Sequence[Panel], frame: Frame) -> Image.Image:
    """Draw pictures of one size with title, colour bar and legend.

    Returns:
        RGB image; ``plan_layout`` says where the parts lie in it.
    """
    layout = plan_layout(
        panels[0].picture.size,
        num_panels=len(panels),
        has_subtitle=bool(frame.subtitle),
        has_captions=any(panel.caption for panel in panels),
        num_keys=len(frame.legend),
    )
    canvas = Image.new("RGB", layout.canvas, PAPER)
    draw = ImageDraw.Draw(canvas)
    letter = layout.font_px
    for panel, (left, top, right, bottom) in zip(panels, layout.pictures, strict=True):
        draw.rectangle((left - 1, top - 1, right, bottom), outline=FRAME)
        canvas.paste(panel.picture, (left, top))
        _draw_text(draw, (left, top - round(0.6 * letter)), panel.caption, letter, room=right - left)
    room = layout.canvas[0] - 2 * letter
    _draw_text(draw, (letter, round(1.9 * letter)), frame.title, round(1.2 * letter), room=room)
    _draw_text(draw, (letter, round(3.4 * letter)), frame.subtitle, round(0.95 * letter), room=room, ink=MUTED)
    _draw_bar(canvas, layout, frame)
    for line, key in enumerate(frame.legend):
        _draw_key(canvas, (letter, layout.legend_top + round(1.5 * letter * (line + 0.5))), key, letter)
    return canvas


def _draw_text(
    draw: ImageDraw.ImageDraw,
    start: tuple[int, int],
    text: str,
    size: int,
    *,
    room: float,
    ink: tuple[int, int, int] = INK,
) -> None:
    """Write a line from its baseline's left end, shortened to the room."""
    font = ImageFont.load_default(size)
    text = " ".join(text.split())
    if font.getlength(text) > room:
        while text and font.getlength(text + ELLIPSIS) > room:
            text = text[:-1]
        text = text.rstrip() + ELLIPSIS
    draw.text(start, text, ink, font, anchor="ls")


def _draw_bar(canvas: Image.Image, layout: Layout, frame: Frame) -> None:
    """Draw the colour bar on white, 1 on top, with its ticks and label."""
    draw, letter = ImageDraw.Draw(canvas), layout.font_px
    left, top, right, bottom = layout.bar
    paper = np.full((bottom - top, right - left, 3), 255, np.uint8)
    score = np.linspace(1, 0, bottom - top)[:, None].repeat(right - left, axis=1)
    canvas.paste(Image.fromarray(blend(paper, score, colours=frame.colours)), (left, top))
    draw.rectangle((left - 1, top - 1, right, bottom), outline=INK)
    for tick in TICKS:
        row = round(bottom - 1 - tick * (bottom - 1 - top))
        draw.line((right, row, right + letter // 3, row), INK)
        draw.text((right + letter // 2, row), f"{tick:g}", INK, ImageFont.load_default(letter), anchor="lm")
    _draw_text(draw, (left, top - round(0.7 * letter)), BAR_LABEL, letter, room=canvas.width - left)


def _draw_key(canvas: Image.Image, start: tuple[int, int], key: Key, letter: int) -> None:
    """Draw a sample of a line and what it means; ``start`` is the left end of its middle."""
    draw, (left, middle) = ImageDraw.Draw(canvas), start
    ends = (left, middle, left + 2 * letter, middle)
    if key.kind == "annotated":
        line = np.array([ends[:2], ends[2:]], np.float64)
        draw_outlines(canvas, [line], line_px=letter / 4)
    else:
        draw.line(ends, PREDICTED if key.kind == "predicted" else SCORED, max(1, letter // 8))
    text_left = left + round(2.7 * letter)
    room = canvas.width - text_left - letter
    _draw_text(draw, (text_left, middle + round(0.35 * letter)), key.text, letter, room=room)


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG: the same bytes for the same pixels, and nothing but pixels."""
    bare = image.copy()
    bare.info.clear()
    file = io.BytesIO()
    bare.save(file, "PNG", compress_level=4)
    return file.getvalue()
