import time

import numpy as np
import pytest

from distmil.visualization.colours import blend
from distmil.visualization.score_grid import score_grid

WIDE = (1000, 600)  # slide, level-0 px
MAP = (100, 60)  # its map: 10 level-0 px a pixel


def grid_of(x, y, score, *, extent_px=100, slide_size=WIDE, map_size=MAP):
    return score_grid(x, y, extent_px, score, slide_size=slide_size, map_size=map_size)


def test_a_hot_patch_lies_where_it_was_cut_on_a_wide_slide():
    grid = grid_of([700], [200], [0.75])
    rows, columns = np.nonzero(~np.isnan(grid))
    # 10 by 10 pixels at column 70, row 20: swapped axes would give column 20, row 59
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (70, 79, 20, 29)
    assert np.unique(grid[20:30, 70:80]) == np.float32(0.75)


def test_overlapping_patches_are_averaged():
    grid = grid_of([100, 150], [100, 100], [0.2, 0.6])
    assert grid[15, 12] == pytest.approx(0.2)
    assert grid[15, 17] == pytest.approx(0.4)
    assert grid[15, 22] == pytest.approx(0.6)


def test_it_equals_the_plain_loop_whatever_the_patches():
    rng = np.random.default_rng(0)
    x, y, extent = (10 * rng.integers(*ends, 300) for ends in ((-8, 105), (-8, 65), (3, 23)))
    score = rng.random(300)
    total, count = np.zeros((60, 100)), np.zeros((60, 100))
    for left, top, edge, value in zip(x // 10, y // 10, extent // 10, score, strict=True):
        rows, columns = (slice(max(0, int(a)), max(0, int(a + edge))) for a in (top, left))
        total[rows, columns] += value
        count[rows, columns] += 1
    grid = grid_of(x, y, score, extent_px=extent)
    assert np.array_equal(np.isnan(grid), count == 0)
    np.testing.assert_allclose(grid[count > 0], (total / np.maximum(count, 1))[count > 0], rtol=1e-6)


def test_overhang_is_cut_off_and_patches_off_the_slide_are_ignored():
    grid = grid_of([950, -50, 1000, 200], [550, -50, 0, 600], [0.3, 0.5, 1, 1])
    assert (grid[55:, 95:] == np.float32(0.3)).all()
    assert (grid[:5, :5] == np.float32(0.5)).all()
    assert np.isnan(grid).sum() == grid.size - 50


def test_neighbours_meet_without_gap_or_overlap_at_any_scale():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 1000, 7), np.arange(0, 600, 7)))
    grid = grid_of(x, y, (x // 7 + y // 7) % 2, extent_px=7, map_size=(333, 199))
    assert set(np.unique(grid)) == {0, 1}


def test_a_patch_smaller_than_a_pixel_still_shows():
    x = np.array([0, 500, 998])
    grid = grid_of(x, [3, 300, 598], [0.1, 0.5, 0.9], extent_px=2)
    assert (grid[0, 0], grid[30, 50], grid[59, 99]) == pytest.approx((0.1, 0.5, 0.9))
    assert (~np.isnan(grid)).sum() == 3


def test_no_patches_give_an_empty_map():
    assert np.isnan(grid_of([], [], [])).all()


def test_many_patches_take_about_a_second_and_stay_within_the_range_of_scores():
    rng, n = np.random.default_rng(0), 200_000
    x, y = rng.integers(0, 90_000, n), rng.integers(0, 60_000, n)
    score = np.where(x < 45_000, rng.uniform(0.1, 1, n), 0)
    start = time.process_time()
    grid = grid_of(x, y, score, slide_size=(90_000, 60_000), map_size=(2048, 1365), extent_px=224)
    assert time.process_time() - start < 5  # about 0.5 s; the limit is for busy machines
    covered = grid[~np.isnan(grid)]
    assert covered.min() == 0  # not -1e-13, which blend would refuse
    assert covered.max() <= 1


@pytest.mark.parametrize("score", [np.nan, np.inf, -0.01, 1.01])
def test_scores_that_are_none_are_refused(score):
    with pytest.raises(ValueError, match="1 of 2 scores"):
        grid_of([0, 100], [0, 0], [0.5, score])
    if not np.isnan(score):  # NaN in a map means that no patch lies there
        with pytest.raises(ValueError, match="scores lie outside"):
            blend(np.zeros((1, 2, 3), np.uint8), np.array([[0.5, score]]), colours="jet")


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one length"):
        grid_of([0, 1], [0], [0.5, 0.5])
    with pytest.raises(ValueError, match="extent_px must be positive"):
        grid_of([0], [0], [0.5], extent_px=0)
