"""The benchmark of slide sizes: remembered scores, the intervals over slides, and the baseline like CLAM."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.clam import ClamLike, clam_loss
from benchmarks.poolhead import as_rows, remembering
from benchmarks.poolslides import Pool, make_slides
from benchmarks.sizefigures import difference
from distmil.bags.loader import load_batch
from distmil.bags.sampler import Step
from distmil.evaluation.metrics import auc
from distmil.inference.scoring import READ_OUTS, score_bag
from distmil.models.regions import PatchEvidence
from distmil.training.learner import make_learner
from tests.support.bags import EMBEDDING, make_bags, small_config
from tests.training.test_step import still_learner

NOTHING = np.empty(0, np.int64)


def pool() -> Pool:
    generator = np.random.default_rng(0)
    normal, tumour = (generator.normal(shift, size=(90, EMBEDDING)).astype(np.float16) for shift in (0, 0.5))
    return Pool(normal, tumour)


@pytest.mark.parametrize("name", ["dual", "gated_attention", "max"])
def test_remembered_scores_are_those_of_the_network(name: str) -> None:
    learner = still_learner(small_config(model={"name": name}), classes=2)
    slides = make_slides(pool(), (140, 600), 2, lesion=(2, 12), seed=1)
    quick, evidence = remembering(learner, pool()), PatchEvidence(0.5, -0.1)
    learner.train(False)
    for slide, row in zip(slides, as_rows(slides), strict=True):
        assert slide.places is not None
        one = score_bag((learner.head,), slide.source, learner.embed, top_k=8).with_regions(slide.places, evidence)
        other = score_bag((quick.eval_model.head,), row.source, quick.embed, top_k=8)
        other = other.with_regions(slide.places, evidence)
        for read_out in READ_OUTS:
            assert getattr(other, read_out) == pytest.approx(getattr(one, read_out), rel=1e-5)
        np.testing.assert_allclose(other.fused_N, one.fused_N, rtol=1e-4, atol=1e-6)


def runs(strength: float, seeds: int = 3) -> list[dict[str, NDArray[np.float64]]]:
    """Runs of a row that ranks the same slides; the higher the strength, the better."""
    label, size = np.tile([True, False], 60), np.repeat([140, 600], 60)
    noise = np.random.default_rng(7).normal(size=120)
    return [{"label": label, "size": size, "slides": np.tile((strength * label + noise)[:, None], len(READ_OUTS))}
            for _ in range(seeds)]  # fmt: skip


def test_a_row_that_is_better_on_the_same_slides_has_an_interval_above_0() -> None:
    everywhere = np.ones(120, bool)
    gain, low, high = difference(runs(2.0), runs(0.5), everywhere, draws=300)
    assert 0 < low < gain < high
    aucs = [auc(run["label"], run["slides"][:, 0]) for run in (runs(2.0)[0], runs(0.5)[0])]
    assert gain == pytest.approx(aucs[0] - aucs[1])
    assert difference(runs(1.0), runs(1.0), everywhere, draws=50) == (0.0, 0.0, 0.0)
    back = difference(runs(0.5), runs(2.0), everywhere, draws=300)
    assert back == pytest.approx((-gain, -high, -low))


def test_pairing_narrows_the_interval() -> None:
    """Slides that are hard for both rows do not count as a difference: they are drawn for both alike."""
    everywhere = np.ones(120, bool)
    _, low, high = difference(runs(1.1), runs(1.0), everywhere, draws=300)
    strangers = [run | {"slides": np.random.default_rng(9).permutation(run["slides"][::2]).repeat(2, 0)}
                 for run in runs(1.0)]  # fmt: skip
    _, apart_low, apart_high = difference(runs(1.1), strangers, everywhere, draws=300)
    assert high - low < 0.5 * (apart_high - apart_low)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_like_clams_is_the_one_of_its_paper(seed: int) -> None:
    config = small_config(model={"name": "gated_attention"})
    torch.manual_seed(seed)
    head = ClamLike(config.model, embedding_dim=EMBEDDING, num_classes=2)
    make_learner(config, head, None, torch.device("cpu")).train(False)
    bags = make_bags(4)
    batch = load_batch(bags, Step([2, 1, 0], {}, NOTHING, NOTHING), [2, 1, 0], config.bags, torch.device("cpu"))
    assert batch is not None
    expected = []
    for i in (2, 1, 0):
        feature, attention = head(torch.from_numpy(np.array(bags[i].source.take(slice(None)))))
        bag = head.classifier((attention.softmax(0)[:, None] * feature).sum(0)).log_softmax(0)[bags[i].label]
        order, k = attention.argsort(descending=True).tolist(), min(8, len(bags[i]) // 2)
        log = head.instances(feature).reshape(-1, 2, 2)[:, bags[i].label].log_softmax(1)
        instances = torch.stack([log[n, 1] for n in order[:k]] + [log[n, 0] for n in order[-k:]])
        expected.append((-0.7 * bag - 0.3 * instances.mean()).item())
    assert clam_loss(head, batch.patches, batch).item() == pytest.approx(np.mean(expected), rel=1e-5)
