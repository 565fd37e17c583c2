import numpy as np
import pyarrow as pa
import pytest

from distmil.errors import ConfigError
from distmil.exporting.scores import agreement, scored_patches
from distmil.storage.schemas import patch_predictions_schema
from tests.support.scale import cases
from tests.support.scored import random_case


@pytest.mark.parametrize("seed", range(cases(50, full=1000)))
def test_agreement_compares_places_in_two_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    first, second = rng.integers(0, 9, (2, count)).astype(np.float32) / 10  # with ties
    expected = []
    for i in range(count):
        places = [
            ((values < values[i]).sum() + ((values == values[i]).sum() - 1) / 2) / (count - 1)
            for values in (first, second)
        ]
        expected.append(1 - abs(places[0] - places[1]))
    np.testing.assert_allclose(agreement(first, second), expected, atol=1e-6)


def test_agreement_knows_no_scale() -> None:
    probability = np.array([0.01, 0.2, 0.97, 0.99], np.float32)
    flat = np.array([0.41, 0.42, 0.43, 0.44], np.float32)
    assert agreement(flat, probability).tolist() == [1, 1, 1, 1]
    assert agreement(flat[::-1].copy(), probability).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 0])
    assert agreement(flat[:1], probability[:1]).tolist() == [1]


def test_a_class_that_is_asked_for_counts_alone() -> None:
    case = random_case(5, num_classes=4)
    any_class, one = case.patches, scored_patches(case.table, abnormal="a", target="c")
    assert (any_class.classes, one.classes) == (["a", "b", "c"], ["c"])
    np.testing.assert_array_equal(one.scores["probability"], case.table["probability_c"].to_numpy())
    np.testing.assert_array_equal(
        one.scores["fused"], case.table["attention"].to_numpy() * case.table["probability_c"].to_numpy()
    )
    assert set(one.class_N.tolist()) == {0}
    np.testing.assert_array_equal(any_class.scores["fused"], case.table["fused"].to_numpy())
    for wrong in ("normal", "d"):
        with pytest.raises(ConfigError, match=f"target = '{wrong}': expected a class .* that is not normal: a, b, c"):
            scored_patches(case.table, abnormal="a", target=wrong)


def test_the_threshold_is_the_rule_of_the_table() -> None:
    """A threshold between two neighbouring floats separates them."""
    low = np.float32(0.7)
    for _ in range(4):  # the middle is rounded up and down by turns
        high = np.nextafter(low, np.float32(1))
        values = {"x": [0, 9], "y": [0, 0], "extent_px": [9, 9]}
        values |= {name: np.array([low, high]) for name in ("attention", "probability", "fused", "topk_probability")}
        patches = scored_patches(pa.table(values), abnormal="a")
        assert patches.is_abnormal((float(low) + float(high)) / 2).tolist() == [False, True]
        low = high
    assert set(patches.scores) - {"agreement"} <= set(patch_predictions_schema(["n", "a"]).names)
