"""Boxes of pixels: how often, or with which sum of values, each pixel is covered."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Boxes(NamedTuple):
    """Boxes in pixels of a picture, each field N; the right and bottom pixels are excluded."""

    left: NDArray[np.intp]
    top: NDArray[np.intp]
    right: NDArray[np.intp]
    bottom: NDArray[np.intp]


def sum_boxes(boxes: Boxes, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Add each value to all pixels of its box: marks on the corners, then running sums along both axes.

    Args:
        boxes: N boxes; what lies outside the picture is cut off.
        value: N values, or one for all.
        shape: Height and width of the picture.
    """
    step = np.zeros((shape[0] + 1, shape[1] + 1))
    left, right = boxes.left.clip(0, shape[1]), boxes.right.clip(0, shape[1])
    top, bottom = boxes.top.clip(0, shape[0]), boxes.bottom.clip(0, shape[0])
    for row, column, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(step, (row, column), sign * np.asarray(value))
    return step.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
