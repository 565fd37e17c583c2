"""Normalisation of embeddings by training statistics."""

import numpy as np
import pytest
import torch

from distmil.models.normaliser import CLIP, Normaliser


def test_a_normaliser_takes_constants_and_outliers() -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(5000, 3, generator=generator) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, 9.0, 7.0])
    sample[0, 1] = 1e4
    normaliser = Normaliser(3)
    normaliser.fit(sample)
    normal = normaliser(sample)
    assert normal[:, :2].mean(0).abs().max() < 0.02
    assert normal[:, :2].std(0) == pytest.approx([1, 1], abs=0.05)
    assert (normal[:, 2] == 0).all()
    assert normal.abs().max() <= CLIP * 1.0001
    np.testing.assert_allclose(normaliser.low[0], np.sort(sample[:, 0].numpy())[5], rtol=1e-6)


def test_half_precision_stays_half_under_autocast_and_is_nearly_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(3000, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 0.0]) + 2
    normaliser = Normaliser(4)
    normaliser.fit(sample)
    stored = sample.half()
    exact = normaliser.centred(stored)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = normaliser.centred(stored)
    assert half.dtype == torch.bfloat16
    assert ((half - exact).abs() * normaliser.scale).max() < CLIP * 2**-7
