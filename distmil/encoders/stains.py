"""H&E stains in optical density: taking a patch apart into them, and shifting them as another laboratory might.

H rows, W columns, 3 channels or stains.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DENSITY_OF_STAIN = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
"""Optical density of pure hematoxylin, eosin and a residual stain in R, G and B; Ruifrok & Johnston 2001."""
UNMIX = np.linalg.inv(_DENSITY_OF_STAIN)
"""From optical density in R, G and B, as a row, to the three stains."""
DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of each value of a byte."""
_OFFSET_SHARE = 0.1
_LN_10 = float(np.log(10))


def shift_stains(image_HW3: NDArray[np.uint8], generator: Generator, *, spread: float) -> NDArray[np.uint8]:
    """Return a patch with the strength of each stain changed at random.

    Source: Tellez et al. 2018 (a factor and an offset for each stain). Departures: the factor is log-normal, so that no
    stain turns round, and the offset has a tenth of its spread.

    Args:
        image_HW3: RGB patch, uint8.
        generator: Of the draws.
        spread: Standard deviation of the factors' logarithms; 0.15 is a stain 14 % weaker or 16 % stronger.
    """
    factor = np.exp(generator.normal(0, spread, 3))
    offset = generator.normal(0, _OFFSET_SHARE * spread, 3)
    mixed = (UNMIX * factor) @ _DENSITY_OF_STAIN
    affine = np.column_stack([mixed.T, offset @ _DENSITY_OF_STAIN]).astype(np.float32)
    density_HW3 = cv2.transform(cv2.LUT(image_HW3, DENSITY), affine)
    light_HW3 = np.exp(-_LN_10 * np.asarray(density_HW3, np.float32)) * np.float32(256) - np.float32(1)
    shifted_HW3: NDArray[np.uint8] = np.rint(light_HW3).clip(0, 255).astype(np.uint8)
    return shifted_HW3
