"""Shares of patches under a mask: exact areas, whatever the scale."""

import numpy as np
import pytest

from distmil.annotations.coverage import mask_shares


@pytest.mark.parametrize("scale", [(4.0, 4.0), (3.7, 5.3), (0.8, 0.6), (31.0, 17.5)])
def test_shares_equal_the_summed_overlap_of_every_mask_pixel(scale):
    generator = np.random.default_rng(1)
    mask = generator.random((9, 23)) < 0.4
    extent = 29
    x = generator.integers(-20, round(23 * scale[0]) + 10, 60).astype(np.int32)
    y = generator.integers(-20, round(9 * scale[1]) + 10, 60).astype(np.int32)
    expected = []
    for left, top in zip(x.tolist(), y.tolist(), strict=True):
        area = 0.0
        for row, column in zip(*np.nonzero(mask), strict=True):
            wide = min((column + 1) * scale[0], left + extent) - max(column * scale[0], left)
            high = min((row + 1) * scale[1], top + extent) - max(row * scale[1], top)
            area += max(0.0, wide) * max(0.0, high)
        expected.append(area / extent**2)
    found = mask_shares(mask, scale=scale, x=x, y=y, extent_px=np.full(len(x), extent, np.int32))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 0.02 < max(expected) < 1


def test_a_padded_patch_counts_what_lies_outside_as_empty():
    mask = np.ones((10, 30), bool)
    x, y, extent_px = (np.array([value], np.int32) for value in (50, 10, 20))
    share = mask_shares(mask, scale=(2.0, 2.0), x=x, y=y, extent_px=extent_px)
    assert share.tolist() == [0.25]
