"""From raw embeddings to features: the block-wise way of a CPU against plain operations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distmil.models import normaliser as module
from distmil.models.normaliser import CLIP, Normaliser, feature_in_blocks

WIDE, FEATURES = 11, 6


def parts(seed: int, rows: int) -> tuple[Normaliser, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding_TE = 3 * torch.randn(rows, WIDE, generator=generator) + 1
    normaliser = Normaliser(WIDE)
    normaliser.fit(embedding_TE)
    normaliser.double()
    weight_FE = torch.randn(FEATURES, WIDE, generator=generator).double().requires_grad_()
    bias_F = torch.randn(FEATURES, generator=generator).double().requires_grad_()
    seed_TF = torch.randn(rows, FEATURES, generator=generator).double()
    return normaliser, embedding_TE.half(), weight_FE, bias_F, seed_TF


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
def test_blocks_equal_plain_operations(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    normaliser, embedding_TE, weight_FE, bias_F, seed_TF = parts(rows, rows)
    plain_TF = nn.functional.linear(normaliser.centred(embedding_TE), weight_FE, bias_F).relu()
    expected = torch.autograd.grad((plain_TF * seed_TF).sum(), [weight_FE, bias_F])
    blocks_TF = feature_in_blocks(normaliser, embedding_TE, weight_FE, bias_F, drop=0.0)
    found = torch.autograd.grad((blocks_TF * seed_TF).sum(), [weight_FE, bias_F])
    torch.testing.assert_close(blocks_TF, plain_TF)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_keeps_the_mean_and_sends_nothing_back_through_what_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 64)
    normaliser, embedding_TE, weight_FE, bias_F, seed_TF = parts(0, 4000)
    bias_F = bias_F.detach() + 100  # every feature is above 0: only dropout makes zeros
    bias_F.requires_grad_()
    whole_TF = feature_in_blocks(normaliser, embedding_TE, weight_FE, bias_F, drop=0.0)
    torch.manual_seed(0)
    dropped_TF = feature_in_blocks(normaliser, embedding_TE, weight_FE, bias_F, drop=0.25)
    kept_TF = (dropped_TF > 0).double()
    assert float(kept_TF.mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped_TF, whole_TF * kept_TF / 0.75)
    found = torch.autograd.grad((dropped_TF * seed_TF).sum(), [weight_FE, bias_F])
    expected = torch.autograd.grad((whole_TF * kept_TF / 0.75 * seed_TF).sum(), [weight_FE, bias_F])
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    again_TF = feature_in_blocks(normaliser, embedding_TE, weight_FE, bias_F, drop=0.25)
    assert torch.equal(again_TF, dropped_TF)


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
