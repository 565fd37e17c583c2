"""Views of a patch: two different ones, drawn from their key alone."""

import math

import numpy as np
import pytest
import torch

from distmil.pretraining import views
from distmil.pretraining.views import LIGHT, ViewSettings, two_views, view
from tests.support.networks import patches
from tests.support.scale import cases

SETTINGS = ViewSettings(edge_px=18, crop_scale=0.4, stain_shift=0.2)


@pytest.mark.parametrize("seed", range(cases(40, full=1000)))
def test_two_views_of_one_patch_differ_and_are_always_the_same(seed: int) -> None:
    draw = np.random.default_rng(seed)
    (image,) = patches(1, int(draw.integers(20, 60)), int(draw.integers(20, 60)), seed=seed)
    found = two_views(image, key=(seed, 0, 7), settings=SETTINGS)
    assert found.shape == (2, 3, 18, 18)
    assert found.dtype == torch.uint8
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, two_views(image, key=(seed, 0, 7), settings=SETTINGS))
    for other in ((seed, 0, 8), (seed, 1, 7), (seed + 1, 0, 7)):
        assert not torch.equal(found, two_views(image, key=other, settings=SETTINGS))


def test_views_take_nothing_from_the_draws_of_torch() -> None:
    (image,) = patches(1, 30, 40, seed=0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    two_views(image, key=(1, 2, 3), settings=SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(cases(100, full=3000)))
def test_a_crop_lies_in_the_patch_and_has_the_share_that_is_asked_for(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows, columns, least = int(draw.integers(20, 300)), int(draw.integers(20, 300)), float(draw.uniform(0.05, 1))
    top, left, height, width = views._box((rows, columns), draw, least=least)
    assert 0 <= top <= top + height <= rows
    assert 0 <= left <= left + width <= columns
    assert height * width / (rows * columns) >= least - (height + width) / (rows * columns)  # of rounding


def test_a_patch_of_one_colour_stays_one_of_about_its_light() -> None:
    image = np.full((20, 30, 3), (150, 90, 120), np.uint8)
    for seed in range(30):
        found = view(image, np.random.default_rng(seed), ViewSettings(18, crop_scale=0.4, stain_shift=0.0)).float()
        assert found.std((1, 2)).max() == 0
        ratio = found[:, 0, 0] / torch.tensor([150.0, 90.0, 120.0])
        assert ratio.max() <= (1 + LIGHT) ** 2
        assert ratio.min() >= (1 - LIGHT) ** 2


def test_every_turn_and_mirror_is_seen_about_equally_often() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:20, :20], image[:20, 20:] = 250, 120  # no turn or mirror of it is itself
    seen: dict[tuple[float, ...], int] = {}
    settings = ViewSettings(16, crop_scale=1.0, stain_shift=0.0)
    for seed in range(400):
        found = view(image, np.random.default_rng(seed), settings).float()[0]
        corners = [found[y, x].item() for y in (3, 12) for x in (3, 12)]
        order = tuple(np.argsort(np.round(corners, -1), kind="stable").tolist())
        seen[order] = seen.get(order, 0) + 1
    brightest = [sum(count for order, count in seen.items() if order[-1] == corner) for corner in range(4)]
    assert all(math.isclose(count, 100, abs_tol=40) for count in brightest)
    assert len(seen) == 8


def test_stains_are_shifted_as_far_as_asked() -> None:
    image = np.full((20, 30, 3), (150, 90, 120), np.uint8)

    def colours(shift: float) -> float:
        settings = ViewSettings(8, crop_scale=1.0, stain_shift=shift)
        found = [view(image, np.random.default_rng(seed), settings).float()[:, 0, 0] for seed in range(60)]
        return float(torch.stack([each / each.sum() for each in found]).std(0).mean())

    assert colours(0.0) < 0.01
    assert colours(0.05) < colours(0.2) / 2
