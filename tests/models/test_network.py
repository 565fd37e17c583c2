"""The network in half precision, and its dropout on a CPU."""

import pytest
import torch
from torch import Tensor

from distmil.config.learning import ModelConfig
from distmil.models.baselines import make_network
from distmil.models.network import Network
from distmil.models.tensors import drop_by_bytes

WIDE, FEATURES, ATTENTION = 11, 6, 4


def make(name: str, rows: int) -> tuple[Network, Tensor]:
    torch.manual_seed(rows)
    embedding_TE = 3 * torch.randn(rows, WIDE) + 1
    config = ModelConfig(name=name, feature_dim=FEATURES, attention_dim=ATTENTION, dropout=0.0, input_dropout=0.0)
    head = make_network(config, embedding_dim=WIDE, num_classes=2)
    head.normaliser.fit(embedding_TE)
    return head.double(), embedding_TE.half()


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


def test_dropout_keeps_the_mean_and_sends_nothing_back_through_what_it_drops() -> None:
    values_TF = torch.full((4000, FEATURES), 100.0).double().requires_grad_()
    torch.manual_seed(0)
    dropped_TF = drop_by_bytes(values_TF, 0.25)
    kept_TF = (dropped_TF > 0).double()
    assert float(kept_TF.mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped_TF, values_TF * kept_TF / 0.75)
    (gradient_TF,) = torch.autograd.grad(dropped_TF.sum(), values_TF)
    torch.testing.assert_close(gradient_TF, kept_TF / 0.75)
    torch.manual_seed(0)
    assert torch.equal(drop_by_bytes(values_TF, 0.25), dropped_TF)
