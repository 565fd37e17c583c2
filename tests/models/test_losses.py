"""The losses and the pooling against a direct loop over the formulas, in float64."""

import math

import pytest
import torch
from torch import Tensor

from distmil.models import losses
from distmil.models.layout import BagLayout, top_k_patches, top_k_size
from distmil.models.pooling import RunningPool, pool

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def laid_out(offsets):
    return BagLayout.of(offsets.diff().tolist())


def random_bags(seed: int, *, classes: int = 2, features: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features T x F, attention T, offsets, labels B of 1 to 6 ragged bags."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (int(torch.randint(1, 7, (), generator=generator)),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    feature_TF = torch.randn(total, features, generator=generator, dtype=torch.float64)
    attention_T = 4 * torch.randn(total, generator=generator, dtype=torch.float64)
    label_B = torch.randint(0, classes, (len(lengths),), generator=generator)
    return feature_TF, attention_T, offsets, label_B


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(logits: list[float], target: list[float]) -> float:
    total = sum(math.exp(value) for value in logits)
    return -sum(share * math.log(math.exp(value) / total) for value, share in zip(logits, target, strict=True))


@pytest.mark.parametrize("seed", range(50))
def test_pooling_is_the_ratio_of_two_sums(seed: int) -> None:
    feature_TF, attention_T, offsets, _ = random_bags(seed)
    pooled_BF = pool(feature_TF, attention_T, laid_out(offsets))
    for b in range(len(offsets) - 1):
        rows = range(int(offsets[b]), int(offsets[b + 1]))
        weights = {i: sigmoid(float(attention_T[i])) for i in rows}
        for f in range(feature_TF.shape[1]):
            expected = sum(weights[i] * float(feature_TF[i, f]) for i in rows) / sum(weights.values())
            assert float(pooled_BF[b, f]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_packed_bags_equal_one_by_one_forward_and_backward(seed: int) -> None:
    feature_TF, attention_T, offsets, _ = random_bags(seed)
    grads = []
    for packed in (True, False):
        feature, attention = feature_TF.clone().requires_grad_(), attention_T.clone().requires_grad_()
        if packed:
            result = pool(feature, attention, laid_out(offsets))
        else:
            pieces = [
                pool(feature[a:b], attention[a:b], BagLayout.of([b - a]))
                for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
            ]
            result = torch.cat(pieces)
        (result**2).sum().backward()
        grads.append((result.detach(), feature.grad, attention.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_pooling_in_chunks_equals_one_pass(seed: int, chunk: int) -> None:
    feature_TF, attention_T, _, _ = random_bags(seed)
    running = RunningPool()
    for start in range(0, len(feature_TF), chunk):
        running.add(feature_TF[start : start + chunk], attention_T[start : start + chunk])
    whole = pool(feature_TF, attention_T, BagLayout.of([len(feature_TF)]))[0]
    torch.testing.assert_close(running.result(), whole, **TIGHT)


@pytest.mark.parametrize("shift", [-500.0, -110.0, 0.0, 500.0])
def test_pooling_is_finite_where_the_plain_ratio_is_not(shift: float) -> None:
    feature_TF, attention_T, offsets, _ = random_bags(3)
    attention = (attention_T.float() + shift).requires_grad_()
    pooled = pool(feature_TF.float(), attention, laid_out(offsets))
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert attention.grad is not None
    assert attention.grad.isfinite().all()


def test_an_empty_bag_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patch"):
        pool(torch.ones(2, 3), torch.ones(2), BagLayout.of([2, 0]))
    with pytest.raises(ValueError, match="at least one patch"):
        RunningPool().result()


@pytest.mark.parametrize(("patches", "expected"), [(1, 1), (10, 1), (11, 2), (30, 3), (71, 8), (80, 8), (5000, 8)])
def test_k_is_a_tenth_of_the_bag_at_most(patches: int, expected: int) -> None:
    assert top_k_size(patches, 8) == expected
    layout = BagLayout.of([patches])
    chosen = top_k_patches(torch.randn(patches), layout.bag_T, layout.top_k(8))
    assert len(chosen) == expected


def test_the_share_of_k_is_exact() -> None:
    """Against whole numbers, for shares that floating point does not hold."""
    for hundredths in range(1, 101):
        for patches in range(1, 200):
            expected = min(8, -(-hundredths * patches // 100))
            assert top_k_size(patches, 8, share=hundredths / 100) == expected, (hundredths, patches)


@pytest.mark.parametrize("seed", range(20))
def test_top_k_takes_the_highest_attention_of_each_bag(seed: int) -> None:
    _, attention_T, offsets, _ = random_bags(seed)
    layout = laid_out(offsets)
    top_k = layout.top_k(3)
    chosen, bag_K = top_k_patches(attention_T, layout.bag_T, top_k), top_k.bag_K
    for b in range(len(offsets) - 1):
        start, stop = int(offsets[b]), int(offsets[b + 1])
        order = sorted(range(start, stop), key=lambda i: -float(attention_T[i]))
        assert set(chosen[bag_K == b].tolist()) == set(order[: top_k_size(stop - start, 3)])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 4])
def test_patch_loss_equals_the_formula(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NC = 3 * torch.randn(30, classes, generator=generator, dtype=torch.float64)
    target_NC = torch.rand(30, classes, generator=generator, dtype=torch.float64)
    target_NC /= target_NC.sum(1, keepdim=True)
    found = losses.patch_loss(logits_NC, target_NC)
    for i in range(30):
        assert float(found[i]) == pytest.approx(cross_entropy(logits_NC[i].tolist(), target_NC[i].tolist()), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 4])
def test_topk_loss_equals_the_formula(seed: int, classes: int) -> None:
    feature_TF, attention_T, offsets, label_B = random_bags(seed, classes=classes, features=classes)
    layout = laid_out(offsets)
    top_k = layout.top_k(4)
    chosen = top_k_patches(attention_T, layout.bag_T, top_k)
    found = losses.topk_loss(feature_TF[chosen], top_k.bag_K, label_B)
    for b in range(len(label_B)):
        rows = range(int(offsets[b]), int(offsets[b + 1]))
        k = min(4, max(1, math.ceil(0.1 * len(rows))))
        best = sorted(rows, key=lambda i: -float(attention_T[i]))[:k]
        target = [float(c == int(label_B[b])) for c in range(classes)]
        expected = sum(cross_entropy(feature_TF[i].tolist(), target) for i in best) / k
        assert float(found[b]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 4])
def test_attention_loss_equals_the_formula(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NC = 3 * torch.randn(30, classes, generator=generator, dtype=torch.float64)
    attention_N = 4 * torch.randn(30, generator=generator, dtype=torch.float64)
    positive_N = torch.rand(30, generator=generator, dtype=torch.float64).round(decimals=1)
    found = losses.attention_loss(attention_N, logits_NC, positive_N)
    for i in range(30):
        total = sum(math.exp(value) for value in logits_NC[i].tolist())
        p = 1 - math.exp(float(logits_NC[i, 0])) / total
        q, y = sigmoid(float(attention_N[i])) * p, float(positive_N[i])
        assert float(found[i]) == pytest.approx(-(y * math.log(q) + (1 - y) * math.log(1 - q)), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_bag_loss_equals_the_formula(seed: int) -> None:
    feature_TF, attention_T, offsets, label_B = random_bags(seed, classes=3, features=3)
    logits_BC = pool(feature_TF, attention_T, laid_out(offsets))
    found = losses.bag_loss(logits_BC, label_B)
    for b in range(len(label_B)):
        target = [float(c == int(label_B[b])) for c in range(3)]
        assert float(found[b]) == pytest.approx(cross_entropy(logits_BC[b].tolist(), target), rel=1e-9)


@pytest.mark.parametrize("is_positive", [True, False])
def test_mixed_bag_loss_judges_presence_of_any_target(is_positive: bool) -> None:
    logits_C = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    normal = float(logits_C.softmax(0)[0])
    expected = -math.log(1 - normal if is_positive else normal)
    assert float(losses.mixed_bag_loss(logits_C, is_positive=is_positive)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("attention", [-200.0, -30.0, 30.0, 200.0])
@pytest.mark.parametrize("margin", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("positive", [0.0, 1.0])
def test_attention_loss_keeps_its_gradient_at_the_extremes(attention: float, margin: float, positive: float) -> None:
    # in fp32 a clamp kills the gradient from a = -10 on, and 1 - q cancels to 0 from a = 17 on
    score = torch.tensor([attention], requires_grad=True)
    logits = torch.tensor([[-margin / 2, margin / 2]], requires_grad=True)
    loss = losses.attention_loss(score, logits, torch.tensor([positive]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert score.grad is not None
    assert score.grad.isfinite().all()
    if positive and attention < 0:
        assert float(score.grad) == pytest.approx(-1.0, abs=1e-6)


def test_half_precision_scores_are_judged_in_full() -> None:
    # 1 - sigmoid(12) is 0 in fp16
    score = torch.tensor([12.0], dtype=torch.float16)
    logits = torch.tensor([[-12.0, 12.0]], dtype=torch.float16)
    found = losses.attention_loss(score, logits, torch.tensor([0.0], dtype=torch.float16))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(12.0, abs=0.1)
