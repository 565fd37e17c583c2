"""The slides that a report shows: the surest mistakes, the most uncertain ones, and the surest right ones."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from distmil.evaluation.slide_results import RIGHT, WRONG, SlideResult
from distmil.visualization.heatmap import FRAME

EACH = 4
"""Slides of each kind."""
PICTURE_PX = 320
"""Longer edge of a picture."""
_QUALITY = 78


def choose_slides(results: Sequence[SlideResult]) -> dict[str, list[SlideResult]]:
    """Choose at most ``EACH`` slides of each kind, of few slides a third of them, and each slide once.

    Args:
        results: Slides; those without a prediction or a label of their own are left out.

    Returns:
        Under "worst" wrong slides, those farthest from the threshold first; under "most uncertain" those nearest to it;
        under "best" right ones, the farthest from it first.
    """
    left = sorted((one for one in results if one.verdict), key=lambda one: (one.margin, one.slide_id))
    most = min(EACH, math.ceil(len(left) / 3))
    worst = [one for one in reversed(left) if one.verdict == WRONG][:most]
    uncertain = [one for one in left if one not in worst][:most]
    best = [one for one in reversed(left) if one.verdict == RIGHT and one not in uncertain][:most]
    return {"worst": worst, "most uncertain": uncertain, "best": best}


def small_picture(png: bytes) -> bytes:
    """Make a JPEG of at most ``PICTURE_PX`` of a map's PNG: the map within its frame, without title and legend.

    Args:
        png: As ``distmil.visualization.heatmap.render`` draws one map.
    """
    with Image.open(io.BytesIO(png)) as image:
        picture = within_frame(image.convert("RGB"))
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def within_frame(image: Image.Image) -> Image.Image:
    """Cut out what the grey frame of a map encloses; the whole image where there is no frame."""
    is_frame = (np.asarray(image) == FRAME).all(axis=2)
    if not is_frame.any():
        return image
    counts = [is_frame.sum(axis=axis) for axis in (1, 0)]
    rows, columns = (np.flatnonzero(count > count.max() / 2) for count in counts)
    if min(rows[-1] - rows[0], columns[-1] - columns[0]) < 2:
        return image
    return image.crop((int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]), int(rows[-1])))
