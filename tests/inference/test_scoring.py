"""Scores of a bag: chunks, read-outs, and agreement with the formulas."""

import numpy as np
import pytest
import torch

from distmil.bags.source import EmbeddingSource
from distmil.config.learning import ModelConfig
from distmil.inference.scoring import score_bag
from distmil.models.layout import top_k_size
from distmil.models.network import DualNetwork
from tests.support.bags import EMBEDDING, make_bag
from tests.support.scale import cases


def network(classes: int = 2, *, seed: int = 0, **options: object) -> DualNetwork:
    torch.manual_seed(seed)
    return DualNetwork(ModelConfig(**options), embedding_dim=EMBEDDING, num_classes=classes).eval()


def as_tensor(patches: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(patches).float()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("feature", ["plain", "attended"])
def test_scores_do_not_depend_on_the_chunk(classes: int, feature: str) -> None:
    head = network(classes, patch_feature=feature, topk_feature=feature)
    bag = make_bag(3, size=57)
    whole = score_bag((head,), bag.source, as_tensor, top_k=8)
    for chunk in (1, 10, 56):
        parts = score_bag((head,), bag.source, as_tensor, top_k=8, chunk=chunk)
        for name in ("attention_N", "probability_N", "topk_probability_N", "fused_N", "class_probability_NC", "bag_C"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-7)
        assert (parts.bag, parts.max, parts.topk_mean) == pytest.approx(
            (whole.bag, whole.max, whole.topk_mean), rel=1e-5
        )


@pytest.mark.parametrize("classes", [2, 4])
def test_read_outs_follow_their_definitions(classes: int) -> None:
    head = network(classes)
    bag = make_bag(5, size=43)
    scores = score_bag((head,), bag.source, as_tensor, top_k=8)
    feature, attention = head(as_tensor(bag.source.take(slice(None))))
    weights = attention.double().sigmoid()
    pooled = (weights[:, None] * feature).sum(0) / weights.sum()
    expected = head.classifier(pooled.float()).softmax(0)
    np.testing.assert_allclose(scores.bag_C, expected.detach().numpy(), rtol=1e-5)
    assert scores.bag == pytest.approx(1 - scores.bag_C[0])
    np.testing.assert_allclose(scores.fused_N, scores.attention_N * scores.probability_N)
    np.testing.assert_allclose(scores.probability_N, 1 - scores.class_probability_NC[:, 0], rtol=1e-5)
    best = np.sort(scores.fused_N)[::-1]
    assert scores.max == pytest.approx(best[0])
    assert scores.topk_mean == pytest.approx(best[: top_k_size(43, 8)].mean())


def test_a_bag_of_one_patch_is_judged() -> None:
    scores = score_bag((network(),), EmbeddingSource([np.ones((1, EMBEDDING), np.float16)]), as_tensor, top_k=8)
    assert scores.max == scores.topk_mean == float(scores.fused_N[0])


@pytest.mark.parametrize("seed", range(cases(40, full=400)))
def test_several_networks_are_averaged_before_anything_follows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, count = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    heads = [network(classes, seed=i) for i in range(count)]
    bag = make_bag(seed, size=int(rng.integers(1, 60)))
    alone = [score_bag((head,), bag.source, as_tensor, top_k=8, with_shift=True) for head in heads]
    together = score_bag(heads, bag.source, as_tensor, top_k=8, chunk=int(rng.integers(1, 70)), with_shift=True)
    for name in ("attention_N", "topk_probability_N", "class_probability_NC", "bag_C"):
        mean = sum(getattr(scores, name).astype(np.float64) for scores in alone) / count
        np.testing.assert_allclose(getattr(together, name), mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(together.fused_N, together.attention_N * together.probability_N)
    best = np.sort(together.fused_N)[::-1][: top_k_size(len(together.fused_N), 8)]
    assert (together.max, together.topk_mean) == pytest.approx((best[0], best.mean()))
    assert together.bag == pytest.approx(np.mean([scores.bag for scores in alone]))
    assert together.shift == pytest.approx(np.mean([scores.shift for scores in alone]), nan_ok=True)
