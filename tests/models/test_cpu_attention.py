"""The attention block on a CPU, block by block, against plain operations."""

import pytest
import torch
from torch import Tensor

from distmil.config.learning import ModelConfig
from distmil.models import cpu_attention
from distmil.models.baselines import NETWORKS, make_network
from distmil.models.cpu_attention import features_in_blocks
from distmil.models.network import Network
from distmil.models.normaliser import Normaliser

WIDE, FEATURES, ATTENTION = 11, 6, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_BLOCK", 8)


def make(name: str, rows: int) -> tuple[Network, Tensor]:
    torch.manual_seed(rows)
    embedding_TE = 3 * torch.randn(rows, WIDE) + 1
    config = ModelConfig(name=name, feature_dim=FEATURES, attention_dim=ATTENTION, dropout=0.0, input_dropout=0.0)
    head = make_network(config, embedding_dim=WIDE, num_classes=2)
    head.normaliser.fit(embedding_TE)
    return head.double(), embedding_TE.half()


def plainly(head: Network, embedding_TE: Tensor) -> tuple[Tensor, Tensor]:
    feature_TF = head.phi(head.normaliser(embedding_TE)).relu()
    return feature_TF, head.attend(feature_TF)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("uses", ["both", "feature", "attention"])
def test_blocks_equal_plain_operations(name: str, rows: int, uses: str) -> None:
    head, embedding_TE = make(name, rows)
    seed_TF, seed_T = torch.randn(rows, FEATURES).double(), torch.randn(rows).double()

    def gradients(feature_TF: Tensor, attention_T: Tensor) -> list[Tensor | None]:
        parts = {"feature": (feature_TF * seed_TF).sum(), "attention": (attention_T * seed_T).sum()}
        total = sum(part for part_of, part in parts.items() if uses in {part_of, "both"})
        return list(torch.autograd.grad(total, list(head.parameters()), allow_unused=True))

    expected, found = plainly(head, embedding_TE), head(embedding_TE)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(gradients(*expected), gradients(*found), strict=True):
        assert (one is None) == (other is None)  # what gets no gradient is not decayed either
        if one is not None:
            torch.testing.assert_close(one, other)
    with torch.no_grad():
        for one, other in zip(expected, head(embedding_TE), strict=True):
            torch.testing.assert_close(one, other)


def test_half_precision_scores_like_full() -> None:
    head, embedding_TE = make("dual", 40)
    head.float()
    with torch.autocast("cpu", torch.bfloat16):
        feature_TF, attention_T = head(embedding_TE)
        (attention_T.sum() + feature_TF.float().sum()).backward()
    half = [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]
    head.zero_grad()
    wide_TF, wide_T = head(embedding_TE)
    (wide_T.sum() + wide_TF.sum()).backward()
    assert (feature_TF.dtype, attention_T.dtype) == (torch.bfloat16, torch.float32)
    assert not torch.equal(attention_T, attention_T.bfloat16().float())  # the score itself is not rounded
    torch.testing.assert_close(attention_T, wide_T, rtol=0, atol=0.05)
    whole = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    assert len(half) == len(whole) > 4
    for one, other in zip(half, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * float(other.abs().max()))


def test_dropout_keeps_the_mean_and_sends_nothing_back_through_what_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_BLOCK", 64)
    torch.manual_seed(0)
    embedding_TE = torch.randn(4000, WIDE)
    normaliser = Normaliser(WIDE)
    normaliser.fit(embedding_TE)
    normaliser.double()
    weight_FE = torch.randn(FEATURES, WIDE).double().requires_grad_()
    bias_F = torch.full((FEATURES,), 100.0).double().requires_grad_()  # above 0: only dropout makes zeros
    seed_TF = torch.randn(4000, FEATURES).double()

    def features(drop: float) -> Tensor:
        return features_in_blocks(normaliser, embedding_TE.half(), weight_FE, bias_F, drop=drop)

    whole_TF = features(0.0)
    torch.manual_seed(0)
    dropped_TF = features(0.25)
    kept_TF = (dropped_TF > 0).double()
    assert float(kept_TF.mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped_TF, whole_TF * kept_TF / 0.75)
    found = torch.autograd.grad((dropped_TF * seed_TF).sum(), [weight_FE, bias_F])
    expected = torch.autograd.grad((whole_TF * kept_TF / 0.75 * seed_TF).sum(), [weight_FE, bias_F])
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    assert torch.equal(features(0.25), dropped_TF)
