"""Where patches lie and which level they are read from, on wide images and fractional strides."""

import itertools
import math

import numpy as np
import pytest

from distmil.errors import TooCoarse, TooSmall
from distmil.slides.grid import grid_step, lay_grid, plan_read
from tests.support.scale import cases

WIDE = (1003, 517)
FRACTIONAL = 224 * 0.5 / 0.243  # a 0.243 um/px scanner at 0.5: 460.9...


def covered(size, x, y, extent):
    """How often each pixel of an image is covered, [row, column]."""
    count = np.zeros((size[1], size[0]), int)
    for left, top in zip(x.tolist(), y.tolist(), strict=True):
        count[max(0, top) : top + extent, max(0, left) : left + extent] += 1
    return count


def rectangle(size, box):
    inside = np.zeros((size[1], size[0]), bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return inside


# --- grids


def test_corners_on_a_wide_slide():
    # 7 wide, 4 high: swapped axes would give (0, 3)
    x, y = lay_grid((7, 4), strategy="crop", extent_px=3, stride=3)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [(0, 0), (3, 0)]


@pytest.mark.parametrize(("edge", "stride"), [(64, 64), (64, 16), (64, 1.5), (64, 100), (61, 60.7), (64, 63.999)])
def test_crop_takes_every_whole_patch_and_no_other(edge, stride):
    x, y = lay_grid(WIDE, strategy="crop", extent_px=edge, stride=stride)
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) == len(x) == len(set(x.tolist())) * len(set(y.tolist()))
    for found, length in ((x, WIDE[0]), (y, WIDE[1])):
        every = [round(i * stride) for i in range(2000) if round(i * stride) + edge <= length]
        assert sorted(set(found.tolist())) == every


@pytest.mark.parametrize(("edge", "stride"), [(64, 64), (64, 16), (224, 223.5), (64, 20.3), (517, 517)])
@pytest.mark.parametrize("strategy", ["pad", "foreground"])
def test_what_is_tiled_is_covered_without_a_gap(strategy, edge, stride):
    box = (0, 0, *WIDE) if strategy == "pad" else (333, 129, 748, 402)
    x, y = lay_grid(WIDE, strategy=strategy, extent_px=edge, stride=stride, foreground=box)
    count = covered(WIDE, x, y, edge)
    assert count[rectangle(WIDE, box)].min() >= 1
    if stride == edge:
        assert count.max() == 1
    # no patch to spare: without the first or last row or column something would be missing
    for kept in (x > x.min(), x < x.max(), y > y.min(), y < y.max()):
        fewer = covered(WIDE, x[kept], y[kept], edge)
        assert fewer[rectangle(WIDE, box)].min() == 0 or stride < edge


@pytest.mark.parametrize("size", [(5, 3), (64, 63), (64, 1)])
def test_an_image_no_larger_than_a_patch_is_one_patch_under_pad(size):
    x, y = lay_grid(size, strategy="pad", extent_px=64, stride=64)
    assert (x.tolist(), y.tolist()) == ([0], [0])
    for strategy in ("crop", "foreground"):
        with pytest.raises(TooSmall, match=rf"{size[0]} x {size[1]} px.*strategy=pad"):
            lay_grid(size, strategy=strategy, extent_px=64, stride=64, foreground=(0, 0, 1, 1))


def test_the_foreground_is_rounded_outward_to_the_grid_of_the_whole_image():
    x, y = lay_grid(WIDE, strategy="foreground", extent_px=64, stride=64, foreground=(130, 60, 200, 70))
    assert sorted(set(x.tolist())) == [128, 192]
    assert sorted(set(y.tolist())) == [0, 64]
    everything = set(zip(*(v.tolist() for v in lay_grid(WIDE, strategy="pad", extent_px=64, stride=64)), strict=True))
    assert set(zip(x.tolist(), y.tolist(), strict=True)) <= everything


def test_rows_come_one_after_the_other():
    x, y = lay_grid((130, 70), strategy="pad", extent_px=64, stride=64)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [(0, 0), (64, 0), (128, 0), (0, 64), (64, 64), (128, 64)]


@pytest.mark.parametrize("strategy", ["pad", "crop", "foreground"])
def test_corners_never_drift(strategy):
    size = (150_001, 1200)
    x, _ = lay_grid(size, strategy=strategy, extent_px=461, stride=FRACTIONAL, foreground=(0, 0, *size))
    columns = np.unique(x)
    assert columns.tolist() == [round(i * FRACTIONAL) for i in range(len(columns))]
    # summing a rounded stride up would be 30 px off by the end
    assert columns[-1] != 461 * (len(columns) - 1)


def test_any_foreground_starts_on_the_grid():
    generator = np.random.default_rng(5)
    for _ in range(300):
        left, top = (int(generator.integers(0, limit - 1)) for limit in WIDE)
        box = (left, top, int(generator.integers(left + 1, WIDE[0] + 1)), int(generator.integers(top + 1, WIDE[1] + 1)))
        stride = float(generator.uniform(5, 80))
        edge = math.ceil(stride) + int(generator.integers(0, 30))
        x, y = lay_grid(WIDE, strategy="foreground", extent_px=edge, stride=stride, foreground=box)
        on_grid = {round(i * stride) for i in range(1000)}
        assert set(x.tolist()) | set(y.tolist()) <= on_grid
        assert covered(WIDE, x, y, edge)[rectangle(WIDE, box)].all()


# --- levels


@pytest.mark.parametrize(
    ("wanted", "level", "read_px", "extent_px", "stored"),
    [
        (0.25, 0, 224, 224, 0.25),  # level 0 as it is
        (0.254, 0, 224, 224, 0.25),  # within 2 %
        (0.26, 0, 233, 233, 0.26),  # beyond: resampled
        (0.5, 0, 448, 448, 0.5),  # no such level: from the next finer one
        (0.99, 1, 224, 896, 1.0),  # level 1, a little coarser but within 2 %
        (1.0, 1, 224, 896, 1.0),
        (0.97, 0, 869, 869, 0.97),  # level 1 is too coarse: level 0, never up from a coarser one
        (1.5, 1, 336, 1344, 1.5),
        (3.9, 1, 874, 3494, 3.9),
        (4.0, 2, 224, 3584, 4.0),
        (20.0, 2, 1120, 17920, 20.0),
    ],
)
def test_the_level_is_the_wanted_one_or_the_next_finer(wanted, level, read_px, extent_px, stored):
    plan = plan_read((1.0, 4.0, 16.0), slide_mpp=0.25, mpp=wanted, tolerance=0.02, patch_px=224, stride_px=224)
    assert (plan.level, plan.read_px, plan.extent_px) == (level, read_px, extent_px)
    assert plan.mpp == pytest.approx(stored, rel=2e-3)
    assert plan.stride == pytest.approx(plan.extent_px, abs=0.5)


def test_a_scanner_of_0243_at_05_is_resampled():
    plan = plan_read((1.0, 4.0), slide_mpp=0.243, mpp=0.5, tolerance=0.02, patch_px=224, stride_px=112)
    assert (plan.level, plan.read_px, plan.extent_px) == (0, 461, 461)
    assert plan.stride == pytest.approx(FRACTIONAL / 2)
    assert plan.mpp == pytest.approx(0.5, rel=1e-3)
    as_it_is = plan_read((1.0, 4.0), slide_mpp=0.243, mpp=0.243, tolerance=0, patch_px=224, stride_px=224)
    assert (as_it_is.read_px, as_it_is.mpp) == (224, 0.243)


def test_a_slide_of_0499_counts_as_05():
    plan = plan_read((1.0,), slide_mpp=0.499, mpp=0.5, tolerance=0.02, patch_px=224, stride_px=224)
    assert (plan.read_px, plan.extent_px, plan.mpp) == (224, 224, 0.499)


@pytest.mark.parametrize("slide_mpp", [0.51, 0.49])
def test_the_tolerance_includes_its_limit(slide_mpp):
    # in doubles 0.51 / 0.5 is a little more than 1.02
    plan = plan_read((1.0,), slide_mpp=slide_mpp, mpp=0.5, tolerance=0.02, patch_px=224, stride_px=224)
    assert (plan.extent_px, plan.mpp) == (224, slide_mpp)


@pytest.mark.parametrize("mpp", [0.24, 0.1])
def test_a_slide_coarser_than_wanted_is_refused_with_both_numbers(mpp):
    with pytest.raises(TooCoarse, match=rf"0\.25 um/px.*{mpp:.4g} um/px") as caught:
        plan_read((1.0, 4.0), slide_mpp=0.25, mpp=mpp, tolerance=0.02, patch_px=224, stride_px=224)
    assert caught.value.status == "too_coarse"


@pytest.mark.parametrize(("slide_mpp", "mpp"), [(None, None), (0.25, None), (None, 0.5)])
def test_in_pixel_mode_a_patch_is_what_it_says(slide_mpp, mpp):
    plan = plan_read((1.0, 4.0), slide_mpp=slide_mpp, mpp=mpp, tolerance=0.02, patch_px=96, stride_px=48)
    assert (plan.level, plan.read_px, plan.extent_px, plan.stride, plan.mpp) == (0, 96, 96, 48, slide_mpp)


def test_what_is_read_is_what_is_covered():
    # whatever the level, the read region spans the patch's extent to within a pixel of that level
    for slide_mpp, wanted, tolerance in itertools.product((0.1214, 0.25, 0.5), (0.5, 0.77, 1.3, 6.1), (0, 0.02, 0.3)):
        downsamples = (1.0, 2.0, 4.0003, 16.01)
        plan = plan_read(downsamples, slide_mpp=slide_mpp, mpp=wanted, tolerance=tolerance, patch_px=224, stride_px=224)
        assert plan.read_px * downsamples[plan.level] == pytest.approx(plan.extent_px, abs=downsamples[plan.level])
        assert plan.read_px >= 224
        assert plan.mpp == pytest.approx(wanted, rel=max(tolerance, 0.005))


@pytest.mark.parametrize("seed", range(cases(100, full=2000)))
def test_the_step_of_a_grid_is_found_from_some_of_its_corners(seed):
    """Steps of fractions of a pixel, holes, and both axes together or one alone."""
    rng = np.random.default_rng(seed)
    edge = float(rng.integers(80, 900))
    stride = edge * rng.uniform(0.3, 1.2)
    start = rng.uniform(0, 5000)
    kept = np.sort(rng.choice(60, size=40, replace=False))
    x, y = (np.rint(start + stride * cells).astype(np.int32) for cells in (kept, np.arange(7)))
    for corners in ((rng.permutation(x),), (x, y)):
        step = grid_step(*corners, edge=edge, finest=0.25)
        assert step == pytest.approx(stride, abs=2 / 30)
        assert np.abs((x - x.min()) / step - (kept - kept[0])).max() < 0.5


def test_gaps_of_two_and_of_three_steps_have_a_step_of_one():
    assert grid_step(np.array([0, 200, 500]), edge=100, finest=0.25) == 100


@pytest.mark.parametrize("finest", [0.25, 0.125])
def test_a_finer_step_than_the_caller_takes_is_no_grid(finest):
    for share, is_grid in ((1.1 * finest, True), (0.9 * finest, False)):
        corner = np.arange(30) * round(1000 * share)
        assert grid_step(corner, edge=1000, finest=finest) == (round(1000 * share) if is_grid else None)


@pytest.mark.parametrize("seed", range(20))
def test_corners_strewn_at_random_lie_on_no_grid(seed):
    x, y = np.random.default_rng(seed).integers(0, 20_000, size=(2, 200))
    assert grid_step(x, y, edge=512, finest=0.125) is None


def test_one_corner_has_no_step():
    assert grid_step(np.array([7]), np.array([3, 3]), edge=512, finest=0.25) is None
