"""Thresholds: the best of all by trying each, between scores, and none where there is nothing to choose."""

import numpy as np
import pytest

from distmil.config.loading import load_config
from distmil.errors import ConfigError
from distmil.evaluation.metrics import choose_thresholds, label_scores, summarise
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import describe_thresholds, threshold_for, threshold_of, youden_threshold
from tests.evaluation.test_metrics import scores
from tests.support.scale import cases


def youden(positive, score, threshold):
    predicted = score >= threshold
    return predicted[positive].mean() - predicted[~positive].mean()


@pytest.mark.parametrize("seed", range(cases(300, full=5000)))
def test_no_other_threshold_is_better(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 40))
    positive = generator.random(count) < generator.uniform(0.1, 0.9)
    score = np.clip(generator.random(count) + positive * generator.uniform(-0.2, 0.5), 0, 1)
    if seed % 2:
        score = np.round(score, 1)  # with ties
    found = youden_threshold(positive, score)
    if positive.all() or not positive.any():
        assert found is None
        return
    tried = [youden(positive, score, t) for t in (*score, *(score + 1e-9))]
    if found is None:
        assert max(tried) <= 1e-12
        return
    assert 0 <= found <= 1
    assert found not in score
    assert youden(positive, score, found) == pytest.approx(max(tried), abs=1e-12)
    middles = [(low + high) / 2 for low, high in np.lib.stride_tricks.sliding_window_view(np.unique(score), 2)]
    best = [t for t in middles if youden(positive, score, t) >= max(tried) - 1e-12]
    assert abs(found - 0.5) == pytest.approx(min(abs(t - 0.5) for t in best))


def test_a_gap_is_cut_in_its_middle():
    assert youden_threshold([False, True, False, True], [0.1, 0.8, 0.2, 0.4]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("positive", "score"),
    [([], []), ([True, True], [0.1, 0.9]), ([False], [0.5]), ([False, True], [0.4, 0.4]), ([False, True], [0.9, 0.1])],
)
def test_where_there_is_nothing_to_choose_there_is_no_threshold(positive, score):
    assert youden_threshold(np.array(positive, bool), score) is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_neighbours_among_floats_are_told_apart(kind):
    low = kind(0.3)
    high = np.nextafter(low, kind(1))
    found = youden_threshold([False, True], np.array([low, high]))
    assert float(low) < found <= float(high)


def judged(label, top, mean, patches=((0.5, 0.5),), label_N=(-1,)):
    bag_C = [1 - label / 2, label / 2] if label < 2 else [0.3, 0.1, 0.6]
    return label_scores(scores(bag_C, patches, top=top, mean=mean), label=label, label_N=np.array(label_N, np.int8))


def test_every_read_out_has_a_threshold_of_its_own():
    rows = [judged(0, 0.8, 0.2), judged(1, 0.9, 0.1), judged(2, 1.0, 0.3)]
    found = choose_thresholds(rows)
    assert set(found) == {"threshold_patch", *(f"threshold_{name}" for name in READ_OUTS)}
    assert found["threshold_bag"] == pytest.approx(0.25)  # 0 against 0.5 and 0.7
    assert found["threshold_max"] == pytest.approx(0.85)
    assert found["threshold_topk_mean"] == pytest.approx(0.25)
    assert found["threshold_patch"] is None
    assert choose_thresholds([]) == {}


def test_the_patch_threshold_is_of_known_patches_of_all_slides():
    rows = [
        judged(1, 0.9, 0.9, patches=[(1, 0.6), (1, 0.99)], label_N=[1, -1]),
        judged(0, 0.1, 0.1, patches=[(1, 0.2), (1, 0.3)], label_N=[0, 0]),
    ]
    assert choose_thresholds(rows)["threshold_patch"] == pytest.approx(0.45)


def test_the_accuracy_is_that_of_the_given_threshold():
    rows = [judged(1, 0.2, 0), judged(0, 0.1, 0)]
    assert summarise(rows, slide_score="max")["slide_accuracy"] == 0.5
    assert summarise(rows, slide_score="max", threshold=0.15)["slide_accuracy"] == 1


def test_the_thresholds_of_an_epoch_are_said():
    row = {"loss": 1.0, "val_threshold_patch": 0.31, "val_threshold_bag": 0.625, "val_threshold_max": None}
    assert describe_thresholds(row, num_slides=12) == (
        "thresholds chosen on 12 validation slides (Youden's J): bag 0.625, patch 0.31; max: 0.5 (one class only "
        "there, or no threshold better than chance)"
    )
    assert [threshold_of(row, name) for name in ("bag", "patch", "max", "topk_mean")] == [0.625, 0.31, 0.5, 0.5]
    for nothing in ({"loss": 1.0}, {"val_threshold_bag": None, "val_threshold_patch": None}):
        assert describe_thresholds(nothing, num_slides=0).startswith("thresholds: 0.5 for slides and patches")


@pytest.mark.parametrize("kind", ["sensitivity", "specificity"])
def test_a_stated_aim_is_met_and_not_overshot(kind):
    """Of all thresholds that serve the aim, no other spares more of the other class."""
    rng = np.random.default_rng(5)
    for _ in range(cases(300, full=5000)):
        num = int(rng.integers(2, 40))
        positive, score = rng.random(num) < 0.4, rng.random(num).round(1)
        share = float(rng.choice([0.1, 0.5, 0.8, 0.9, 0.95, 1.0]))
        found = threshold_for(positive, score, aim=f"{kind}={share}")
        if positive.all() or not positive.any():
            assert found is None
            continue

        def reached(cut, positive=positive, score=score):
            return {"sensitivity": np.mean(score[positive] >= cut), "specificity": np.mean(score[~positive] < cut)}

        if found is None:  # the threshold would have to be above 1
            assert kind == "specificity"
            assert reached(1.0)[kind] < share
            continue
        assert 0 <= found <= 1
        other = "specificity" if kind == "sensitivity" else "sensitivity"
        assert reached(found)[kind] >= share - 1e-12
        serving = [cut for cut in (*score, *(score + 1e-9), 1.1) if reached(cut)[kind] >= share - 1e-12]
        assert reached(found)[other] == pytest.approx(max(reached(cut)[other] for cut in serving))


def test_aims_of_a_hand_made_case():
    positive, score = [False, True, False, True, True], [0.1, 0.3, 0.5, 0.6, 0.9]
    assert threshold_for(positive, score, aim="sensitivity=0.6") == pytest.approx(0.55)
    assert threshold_for(positive, score, aim="sensitivity=0.67") == pytest.approx(0.2)
    assert threshold_for(positive, score, aim="specificity=0.5") == pytest.approx(0.2)
    assert threshold_for(positive, score, aim="specificity=0.9") == pytest.approx(0.55)
    assert threshold_for([False, True], [1.0, 0.3], aim="specificity=0.9") is None  # no probability is above 1
    assert threshold_for([False, True], [0.3, 0.0], aim="sensitivity=0.9") == 0
    assert threshold_for([False, True], [0.2, np.nan], aim="youden") is None


def test_an_aim_is_of_slides_and_not_of_patches():
    rng = np.random.default_rng(6)
    patches = [(1, 0.2), (1, 0.4), (1, 0.6), (1, 0.1)]
    rows = [judged(i % 2, float(p), 0.5, patches, [0, 1, 1, 1]) for i, p in enumerate(rng.random(40))]
    plain, aimed = choose_thresholds(rows), choose_thresholds(rows, aim="sensitivity=1")
    assert aimed["threshold_patch"] == plain["threshold_patch"] == pytest.approx(0.3)
    at = READ_OUTS.index("max")
    assert aimed["threshold_max"] <= min(row.read_outs[at] for row in rows if row.label)
    assert plain["threshold_max"] != aimed["threshold_max"]


def test_the_aim_is_described():
    row = {"val_threshold_bag": 0.2, "val_threshold_patch": 0.3}
    assert describe_thresholds(row, num_slides=9, aim="sensitivity=0.95") == (
        "thresholds chosen on 9 validation slides (sensitivity of at least 0.95, of patches by Youden's J): "
        "bag 0.2, patch 0.3"
    )


@pytest.mark.parametrize("aim", ["youden", "sensitivity=0.95", "specificity=.9", "sensitivity=1", "specificity=1.0"])
def test_aims_that_the_configuration_takes(aim):
    assert load_config(None, [f"training.threshold_aim={aim}"]).training.threshold_aim == aim


@pytest.mark.parametrize("aim", ["sensitivity", "sensitivity=0", "sensitivity=95", "accuracy=0.9", "specificity=0.0"])
def test_other_aims_are_refused(aim):
    with pytest.raises(ConfigError, match=r"training\.threshold_aim = .*such as sensitivity=0\.95"):
        load_config(None, [f"training.threshold_aim={aim}"])
