"""Shifted stains: a patch as another laboratory might have stained it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from distmil.encoders.stains import DENSITY, UNMIX, shift_stains


def patch(seed: int = 0) -> NDArray[np.uint8]:
    """A patch of hematoxylin and eosin in random amounts."""
    amount = np.random.default_rng(seed).uniform(0.05, 0.5, (48, 40, 3)) * [1, 1, 0]
    return np.rint(256 * 10 ** -(amount @ np.linalg.inv(UNMIX)) - 1).clip(0, 255).astype(np.uint8)


def stains(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Amount of each stain in each pixel, P x 3."""
    return DENSITY[image].reshape(-1, 3).astype(np.float64) @ UNMIX


def test_no_shift_leaves_a_patch_as_it_is() -> None:
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shift_stains(image, np.random.default_rng(0), spread=1e-9), image)


def test_a_shift_is_a_factor_and_an_offset_of_each_stain() -> None:
    image = patch()
    shifted = shift_stains(image, np.random.default_rng(3), spread=0.2)
    generator = np.random.default_rng(3)
    factor, offset = np.exp(generator.normal(0, 0.2, 3)), generator.normal(0, 0.02, 3)
    bright = (shifted > 20).all(axis=2).ravel()  # where rounding to a byte is little of the density
    assert bright.mean() > 0.5
    np.testing.assert_allclose(stains(shifted)[bright], (stains(image) * factor + offset)[bright], atol=0.03)


def test_shifts_differ_and_come_again_from_the_same_seed() -> None:
    image = patch()
    first, again, other = (shift_stains(image, np.random.default_rng(seed), spread=0.15) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2


@pytest.mark.parametrize("spread", [0.05, 0.15, 0.3])
def test_black_and_white_stay_bytes(spread: float) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[8:] = 255
    for seed in range(20):
        shifted = shift_stains(image, np.random.default_rng(seed), spread=spread)
        assert shifted.dtype == np.uint8
        assert shifted[:8].mean() < 20
        assert shifted[8:].mean() > 200
