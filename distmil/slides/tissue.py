"""Where tissue is: optical density against the slide's own background, on a small image.

Missed tissue is the costly error, so the threshold leans towards tissue and the clean-up only takes specks away.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from distmil.slides.grid import Box

TISSUE_MPP = 8.0
TISSUE_MAX_PX = 4096
_LEAST_DENSITY, _MOST_DENSITY = 0.05, 0.07
_SPECK_PX = 16
_BLACK = 50


def detect_tissue(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the tissue mask of a slide's overview, True = tissue.

    The background colour is taken from the brightest pixels; a pixel is tissue where its optical density against it
    passes Otsu's threshold, held between two bounds so that neither an empty nor a full slide tips over; the upper one
    keeps faint tissue (fat, mucin) beside dark tissue, which Otsu alone would lose.

    Args:
        image: RGB, H x W x 3, at about ``TISSUE_MPP`` um per pixel.

    Source: Otsu 1979 on the Beer-Lambert density of the densest channel.
    """
    smooth = cv2.GaussianBlur(image, (3, 3), 0)
    background = np.percentile(smooth.reshape(-1, 3), 95, axis=0)
    if background.min() < 180:
        background = np.full(3, 245.0)
    density = np.log10((background + 1) / (smooth.astype(np.float32) + 1)).max(axis=2).clip(0, 1)
    levels = (density * 255).astype(np.uint8)
    otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = density > np.clip(otsu / 255, _LEAST_DENSITY, _MOST_DENSITY)
    mask &= smooth.max(axis=2) > _BLACK
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return _without_specks(closed)


def bounding_box(mask: NDArray[np.bool_], *, scale: float, size: tuple[int, int]) -> Box | None:
    """Return the smallest level-0 rectangle (left, top, right, bottom) that holds the mask, or None if it is empty.

    Args:
        mask: H x W.
        scale: Level-0 pixels per mask pixel.
        size: Slide (width, height), which bounds the rectangle.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    left, top = int(columns[0] * scale), int(rows[0] * scale)
    right, bottom = int(np.ceil((columns[-1] + 1) * scale)), int(np.ceil((rows[-1] + 1) * scale))
    return left, top, min(right, size[0]), min(bottom, size[1])


def _without_specks(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Drop connected pieces of fewer than ``_SPECK_PX`` pixels."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= _SPECK_PX
    keep[0] = False
    return np.asarray(keep[pieces])
