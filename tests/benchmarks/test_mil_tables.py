"""The benchmark against published tables: its bag rule, its standard error, and that nothing leaks into training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.inprocess import train_here
from benchmarks.mil_tables import SETTINGS, read_bags, score_fold, summary
from benchmarks.mnistbags import EMBEDDING, LeNet, draw_digits, make_bags, merged
from distmil.bags.bag import Bag
from distmil.config.root import Config
from distmil.training.engine import evaluate
from distmil.training.workers import Workers

DIGITS = np.resize(np.arange(10, dtype=np.uint8), 500)
PIXELS = np.random.default_rng(0).integers(0, 9, (500, 28, 28)).astype(np.uint8)
PIXELS[DIGITS == 9, 8:20, 5:12] = 255  # a 9 is a bright bar here
QUICK = {"training": {"epochs": 2}, "model": {"feature_dim": 16, "attention_dim": 8}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of 20 bags in two folds, repeated once; positive bags hold one shifted instance."""
    generator = np.random.default_rng(1)
    bag_of = np.repeat(np.arange(20), generator.integers(2, 7, 20))
    labels = np.arange(20) % 2
    features = generator.normal(size=(len(bag_of), 5))
    features[np.searchsorted(bag_of, np.flatnonzero(labels)), 2] += 4
    is_train = np.stack([np.arange(20) < 10, np.arange(20) >= 10])[None]
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, X=features, bag=bag_of, y=labels, folds_train_mask=is_train)
    return path


def test_bags_of_a_table_know_their_label_and_nothing_of_their_patches(table: Path) -> None:
    bags, folds = read_bags(table)
    assert [bag.label for bag in bags] == [0, 1] * 10
    assert folds.shape == (1, 2, 20)
    assert not any(bag.is_known_N.any() for bag in bags)
    assert bags[0].source.take(np.array([1, 0])).dtype == np.float32


def test_a_fold_is_scored_by_its_other_bags_alone(table: Path) -> None:
    bags, folds = read_bags(table)
    first = score_fold(bags, folds[0, 0], [SETTINGS, QUICK], seed=3)
    assert first == score_fold(bags, folds[0, 0], [SETTINGS, QUICK], seed=3)
    flipped = [
        bag if inside else Bag(bag.slide_id, 1 - (bag.label or 0), bag.source, bag.label_N, bag.target_NC)
        for bag, inside in zip(bags, folds[0, 0], strict=True)
    ]
    mirrored = score_fold(flipped, folds[0, 0], [SETTINGS, QUICK], seed=3)
    assert mirrored["accuracy"] == pytest.approx(1 - first["accuracy"])  # labels outside train change no prediction


def test_the_standard_error_is_that_of_one_cross_validation() -> None:
    rows = [{"repeat": r, "accuracy": a} for r, pair in enumerate([(0.8, 1.0), (0.6, 0.6)]) for a in pair]
    mean, error, spread, repeats = summary(rows)
    assert mean == pytest.approx(0.75)
    assert error == pytest.approx((0.1 + 0.0) / 2)
    assert spread == pytest.approx(0.3 / 2**0.5)
    assert repeats == 2


def test_the_bag_rule() -> None:
    drawn = draw_digits(DIGITS, 400, np.random.default_rng(0))
    holds = [bool((DIGITS[chosen] == 9).any()) for chosen in drawn]
    sizes = [len(chosen) for chosen in drawn]
    assert holds == [True, False] * 200
    assert np.mean(sizes[1::2]) == pytest.approx(10, abs=0.5)
    assert np.std(sizes[1::2]) == pytest.approx(2, abs=0.4)


@pytest.mark.parametrize(("annotated", "positives"), [(None, 0), (0.1, 3), (1.0, 25)])
def test_only_annotated_positive_bags_and_negative_ones_have_instance_labels(
    annotated: float | None, positives: int
) -> None:
    drawn = draw_digits(DIGITS, 50, np.random.default_rng(0))
    bags = make_bags(PIXELS, DIGITS, drawn, annotated=annotated)
    assert sum(bool(bag.label) and bool(bag.is_known_N.all()) for bag in bags) == positives
    assert sum(not bag.label and bool(bag.is_known_N.all()) for bag in bags) == (0 if annotated is None else 25)
    assert all(bag.is_known_N.all() or not bag.is_known_N.any() for bag in bags)


def test_the_encoder_learns_with_the_head() -> None:
    config: Config = merged(
        {"model": {"feature_dim": 32, "attention_dim": 8}, "bags": {"slides_per_step": 4}},
        training={"epochs": 6, "encoder_lr": 1e-3, "warmup_steps": 2},
    )
    train, test = (
        make_bags(PIXELS, DIGITS, draw_digits(DIGITS, 20, np.random.default_rng(seed)), annotated=1.0)
        for seed in (0, 1)
    )
    torch.manual_seed(0)
    encoder = LeNet()
    before = encoder.layers[0].weight.detach().clone()
    learner, _ = train_here(train, config, embedding_dim=EMBEDDING, encoder=encoder, normalise=False)
    assert not bool((encoder.layers[0].weight == before).all())
    assert (evaluate(learner, test, config, workers=Workers())["patch_auc_fused"] or 0) > 0.95
