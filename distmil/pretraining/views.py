"""Views of a patch: random crops under other light, stains, turns and sharpness. Draws follow from a key alone.

Views are drawn from a generator of their own, not from torch's, so that they are equal on every worker, in every
thread, and after a restart.

V views, H rows, W columns, 3 channels, P edge of a view.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from distmil.encoders.stains import shift_stains

ASPECT = 4 / 3
"""Longest shape of a crop: width to height, or height to width."""
LIGHT = 0.2
"""Largest change of brightness and contrast, as a share."""
BLUR_SHARE = 0.5
"""Share of views that are blurred."""
SIGMA_PX = (0.1, 1.5)
"""Of the blur, at an edge of 224 px."""
_USUAL_PX = 224
_TRIES = 10


@dataclass(frozen=True)
class ViewSettings:
    """How views are made."""

    edge_px: int
    """P."""
    crop_scale: float
    """Least share of a patch in a view."""
    stain_shift: float
    """Standard deviation of the stains' shifts; 0: none."""


def two_views(image_HW3: NDArray[np.uint8], *, key: Sequence[int], settings: ViewSettings) -> Tensor:
    """Make two views of a patch, 2 x 3 x P x P, uint8.

    Args:
        image_HW3: RGB patch, uint8.
        key: What the draws follow from, such as seed, epoch and patch.
        settings: How views are made.
    """
    return torch.stack([view(image_HW3, np.random.default_rng([*key, number]), settings) for number in range(2)])


def view(image_HW3: NDArray[np.uint8], generator: Generator, settings: ViewSettings) -> Tensor:
    """Make one view of a patch, 3 x P x P, uint8.

    Source: the transforms of SimCLR (Chen et al. 2020). Departures for tissue, which has no upright side and few
    colours: quarter turns beside mirrors; shifted stains in place of changed hue, saturation and grey; larger crops.
    """
    top, left, height, width = _box(image_HW3.shape[:2], generator, least=settings.crop_scale)
    crop_HW3 = np.ascontiguousarray(image_HW3[top : top + height, left : left + width])
    if settings.stain_shift:
        crop_HW3 = shift_stains(crop_HW3, generator, spread=settings.stain_shift)
    quarters, is_mirrored = int(generator.integers(4)), bool(generator.integers(2))
    turned_HW3 = np.rot90(crop_HW3, quarters)
    turned_HW3 = turned_HW3[:, ::-1] if is_mirrored else turned_HW3
    image_3HW = torch.from_numpy(np.ascontiguousarray(turned_HW3.transpose(2, 0, 1)))
    edge = settings.edge_px
    image_3PP = functional.resize(image_3HW, [edge, edge], InterpolationMode.BICUBIC, antialias=True)
    brightness, contrast = generator.uniform(1 - LIGHT, 1 + LIGHT, 2)
    image_3PP = functional.adjust_contrast(functional.adjust_brightness(image_3PP, brightness), contrast)
    if generator.random() < BLUR_SHARE:
        sigma = float(generator.uniform(*SIGMA_PX)) * edge / _USUAL_PX
        taps = 2 * math.ceil(2 * sigma) + 1
        image_3PP = functional.gaussian_blur(image_3PP, [taps, taps], [sigma, sigma])
    seen_3PP: Tensor = image_3PP
    return seen_3PP


def _box(size: tuple[int, ...], generator: Generator, *, least: float) -> tuple[int, int, int, int]:
    """Draw a box of a random share and shape in an image of (height, width): top, left, height, width."""
    rows, columns = size
    for _ in range(_TRIES):
        area = rows * columns * generator.uniform(least, 1)
        aspect = math.exp(generator.uniform(-math.log(ASPECT), math.log(ASPECT)))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= rows and 0 < width <= columns:
            return (
                int(generator.integers(rows - height + 1)),
                int(generator.integers(columns - width + 1)),
                height,
                width,
            )
    return 0, 0, rows, columns
