"""From scores to colours and opacity: tissue shows untouched where the score is 0."""

from typing import Literal, get_args

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from distmil.visualization.score_grid import check_scores

Colours = Literal["jet", "viridis"]
"""``jet``: blue 0 to red 1; ``viridis``: dark blue 0 to yellow 1, in order to colour-blind eyes too."""
COLOURS: tuple[Colours, ...] = get_args(Colours)
OPACITY = 0.6
"""Of the score 1; that of a lower score is as much smaller as the score."""

Pixels = NDArray[np.uint8]

_TABLES = {name: np.asarray(colormaps[name](np.linspace(0, 1, 256)))[:, :3] * 255 for name in get_args(Colours)}


def blend(under: Pixels, score: NDArray[np.floating], *, colours: Colours, opacity: float = OPACITY) -> Pixels:
    """Lay the colours of scores over pixels.

    Args:
        under: RGB, ... x 3.
        score: Scores in [0, 1], ...; NaN leaves a pixel as it is.
        colours: Name of the colours.
        opacity: Of the score 1, in [0, 1].

    Raises:
        ValueError: If a score is outside [0, 1] or infinite.
    """
    covered = ~np.isnan(score)
    found = score[covered].astype(np.float64)
    check_scores(found)
    alpha = opacity * found[:, None]
    blended = under.copy()
    colour = _TABLES[colours][np.rint(found * 255).astype(np.intp)]
    blended[covered] = np.rint(alpha * colour + (1 - alpha) * under[covered])
    return blended


def colour(score: NDArray[np.floating], *, colours: Colours) -> Pixels:
    """Turn scores into opaque colours, ... x 3; white where there is none.

    Args:
        score: Scores in [0, 1], ...; NaN where there is none.
        colours: Name of the colours.

    Raises:
        ValueError: If a score is outside [0, 1] or infinite.
    """
    covered = ~np.isnan(score)
    check_scores(score[covered])
    pixels = np.full((*score.shape, 3), 255, np.uint8)
    table = np.rint(_TABLES[colours]).astype(np.uint8)
    pixels[covered] = table[np.rint(score[covered].astype(np.float64) * 255).astype(np.intp)]
    return pixels
