"""The outcome of tiling for a slide in one picture: its overview with tissue, patches, labels and outlines drawn in.

Arrays are indexed [row, column]; boxes are (left, top, right, bottom) in pixels of the picture, the last two excluded.
"""

import io
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distmil.visualization.boxes import Boxes, sum_boxes

MAX_EDGE_PX = 1400
"""Longest edge of a picture; a larger overview is reduced."""
MIN_EDGE_PX = 700
"""A smaller overview is enlarged by a whole number, as far as ``MAX_EDGE_PX`` allows."""
MIN_BOX_PX = 6
"""Patches that are smaller on the picture are drawn as one tinted area with an edge."""
JPEG_QUALITY = 75

COLOURS = {
    "tissue": (0, 168, 84),
    "patch": (0, 128, 255),
    "positive": (228, 26, 28),
    "negative": (90, 160, 255),
    "outline": (255, 221, 0),
}
_BLACK = (0, 0, 0)

_TINT_OPACITY, _GRID_OPACITY, _POSITIVE_OPACITY, _NEGATIVE_OPACITY = 0.25, 0.7, 0.4, 0.22
_TISSUE_PX, _OUTLINE_PX, _OUTLINE_EDGE_PX = 2, 2, 5
_SUBPIXEL_BITS = 4
_FAR_PX = 2**20  # outlines that run off the slide are bent this far outside, which OpenCV's integers can hold

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def draw_slide(
    overview: Pixels,
    *,
    scale: float,
    mask: Mask,
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    extent_px: int,
    label_N: NDArray[np.int8] | None = None,
    outlines: Sequence[NDArray[np.float64]] = (),
) -> bytes:
    """Draw a slide's tissue, patches, labels and outlines over its overview.

    Args:
        overview: RGB, H x W x 3.
        scale: Level-0 pixels per pixel of the overview.
        mask: H x W, True = tissue; its border is drawn, along the picture's rim too.
        x: Left edges of the patches in level-0 pixels, N.
        y: Top edges, N.
        extent_px: Edge of a patch in level-0 pixels.
        label_N: Class of every patch, 0 = normal, -1 = unknown. Normal ones are tinted only beside positive ones.
        outlines: Rings in level-0 pixels, each n x 2 (x, y), closed for drawing where open.

    Returns:
        JPEG, at most ``MAX_EDGE_PX`` on its longest edge; the same bytes for the same arguments.

    Raises:
        ValueError: If sizes or lengths differ, or ``scale`` or ``extent_px`` is not positive.
    """
    if overview.shape != (*mask.shape, 3):
        raise ValueError(f"an overview of shape {overview.shape} does not fit a mask of shape {mask.shape}")
    if not (x.shape == y.shape == (len(x),) and (label_N is None or label_N.shape == x.shape)):
        shapes = f"{x.shape}, {y.shape} and {None if label_N is None else label_N.shape}"
        raise ValueError(f"x, y and labels must be lists of one length, not of shapes {shapes}")
    if not (scale > 0 and extent_px > 0):
        raise ValueError(f"scale and extent_px must be positive, not {scale} and {extent_px}")
    picture = _fit(overview)
    zoom = (picture.shape[1] / overview.shape[1] / scale, picture.shape[0] / overview.shape[0] / scale)
    _draw_patches(picture, _boxes(x, y, extent_px, zoom=zoom), edge_px=extent_px * min(zoom), label_N=label_N)
    _blend(picture, _border(_fit(mask.astype(np.uint8) * 255) > 127), COLOURS["tissue"], opacity=1)
    _draw_outlines(picture, outlines, zoom=zoom)
    file = io.BytesIO()
    # thin coloured lines need their colour at full resolution
    Image.fromarray(picture).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _fit(image: Pixels) -> Pixels:
    """Copy an image to a readable size: enlarged by a whole number, repeating pixels, or reduced by area averaging."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest > MAX_EDGE_PX:
        size = (max(1, round(width * MAX_EDGE_PX / longest)), max(1, round(height * MAX_EDGE_PX / longest)))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    times = min(-(-MIN_EDGE_PX // longest), MAX_EDGE_PX // longest)
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _boxes(x: NDArray[np.int32], y: NDArray[np.int32], extent_px: int, *, zoom: tuple[float, float]) -> Boxes:
    """Place the patches on the picture, at least one pixel each; neighbours share their edges."""
    left, top = (np.rint(start * times).astype(np.intp) for start, times in zip((x, y), zoom, strict=True))
    edge = float(extent_px)
    right, bottom = (np.rint((start + edge) * times).astype(np.intp) for start, times in zip((x, y), zoom, strict=True))
    return Boxes(left, top, np.maximum(right, left + 1), np.maximum(bottom, top + 1))


def _draw_patches(picture: Pixels, boxes: Boxes, *, edge_px: float, label_N: NDArray[np.int8] | None) -> None:
    """Tint the labelled patches in place, and draw the grid: lines, or one tinted area where patches are small."""
    shape = picture.shape[:2]
    covered, positive = _cover(boxes, shape), np.zeros(shape, np.bool_)
    if label_N is not None and (label_N > 0).any():
        positive = _cover(Boxes(*(side[label_N > 0] for side in boxes)), shape)
        negative = _cover(Boxes(*(side[label_N == 0] for side in boxes)), shape)
        _blend(picture, negative & ~positive, COLOURS["negative"], opacity=_NEGATIVE_OPACITY)
        _blend(picture, positive, COLOURS["positive"], opacity=_POSITIVE_OPACITY)
    if edge_px >= MIN_BOX_PX:
        opacity = _GRID_OPACITY * min(1.0, 0.4 + edge_px / 40)  # narrow meshes would hide what is under them
        _blend(picture, _cover(_sides(boxes, shape), shape), COLOURS["patch"], opacity=opacity)
    else:
        _blend(picture, covered & ~positive, COLOURS["patch"], opacity=_TINT_OPACITY)
        _blend(picture, _border(covered, line_px=1), COLOURS["patch"], opacity=_GRID_OPACITY)


def _sides(boxes: Boxes, shape: tuple[int, ...]) -> Boxes:
    """List the four one-pixel sides of every box; a side on the picture's far rim is drawn just inside it."""
    left, top, right, bottom = boxes
    right = np.where(right == shape[1], right - 1, right)
    bottom = np.where(bottom == shape[0], bottom - 1, bottom)
    return Boxes(
        np.concatenate([left, left, left, right]),
        np.concatenate([top, top, bottom, top]),
        np.concatenate([left + 1, right + 1, right + 1, right + 1]),
        np.concatenate([bottom + 1, top + 1, bottom + 1, bottom + 1]),
    )


def _cover(boxes: Boxes, shape: tuple[int, ...]) -> Mask:
    """Mark the pixels that lie in a box."""
    return sum_boxes(boxes, 1, shape) > 0


def _border(mask: Mask, *, line_px: int = _TISSUE_PX) -> Mask:
    """Mark the outermost pixels of a mask, those on the picture's rim too."""
    kernel = np.ones((2 * line_px + 1, 2 * line_px + 1), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(mask & (inner == 0))


def _blend(picture: Pixels, where: Mask, colour: tuple[int, int, int], *, opacity: float) -> None:
    """Mix a colour into some pixels, in place."""
    picture[where] = np.rint(picture[where] * (1 - opacity) + np.multiply(colour, opacity)).astype(np.uint8)


def _draw_outlines(picture: Pixels, outlines: Sequence[NDArray[np.float64]], *, zoom: tuple[float, float]) -> None:
    """Draw closed rings in place, yellow with a black edge, which shows on any stain."""
    # OpenCV counts from the centre of the first pixel, slides from its corner
    points = [((ring * zoom - 0.5).clip(-_FAR_PX, _FAR_PX) * 2**_SUBPIXEL_BITS) for ring in outlines if len(ring)]
    rings = [np.rint(ring).astype(np.int32) for ring in points]
    for colour, line_px in ((_BLACK, _OUTLINE_EDGE_PX), (COLOURS["outline"], _OUTLINE_PX)):
        cv2.polylines(picture, rings, True, colour, line_px, cv2.LINE_AA, _SUBPIXEL_BITS)
