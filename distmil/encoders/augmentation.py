"""Patches as another laboratory, or a turned slide, would show them. Draws follow from the view and the patch's place.

H rows, W columns, 3 channels.
"""

import zlib

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from distmil.encoders.stains import shift_stains


def generator_of(view: int, slide_id: str, place: tuple[int, int]) -> Generator:
    """Make the generator of one patch in one view; it does not depend on the order of patches."""
    return np.random.default_rng([view, zlib.crc32(slide_id.encode()), *place])


def augmented(
    image_HW3: NDArray[np.uint8], *, view: int, slide_id: str, place: tuple[int, int], spread: float
) -> NDArray[np.uint8]:
    """Shift a patch's stains, turn it by quarters and mirror it, at random but for each view and place alike.

    Args:
        image_HW3: RGB patch, uint8; a patch that is not square is turned by halves alone.
        view: Number of the view, from 1 on.
        slide_id: Whose patch it is.
        place: Its top-left corner (x, y) in level-0 pixels.
        spread: ``encoder.stain_shift``.
    """
    generator = generator_of(view, slide_id, place)
    shifted_HW3 = shift_stains(image_HW3, generator, spread=spread)
    quarters, is_mirrored = int(generator.integers(4)), bool(generator.integers(2))
    step = 1 if shifted_HW3.shape[0] == shifted_HW3.shape[1] else 2
    turned_HW3 = np.rot90(shifted_HW3, step * quarters)
    return np.ascontiguousarray(turned_HW3[:, ::-1] if is_mirrored else turned_HW3)
