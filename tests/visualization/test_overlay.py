import numpy as np
import pytest
from matplotlib import colormaps

from distmil.visualization.colours import OPACITY, blend
from distmil.visualization.overlay import PREDICTED, SCORED, MapBase, paint, scale_bar_um


def hot_and_cold(shape=(300, 600)):
    """Return a grey thumbnail and its map: hot on the left, cold in the middle, nothing on the right."""
    grid = np.full(shape, np.nan, np.float32)
    grid[:, : shape[1] // 3] = 0.9
    grid[:, shape[1] // 3 : 2 * shape[1] // 3] = 0.1
    return np.random.default_rng(0).integers(150, 250, (*shape, 3), np.uint8), grid


def base_of(thumbnail, grid, **kwargs):
    return MapBase(thumbnail, ~np.isnan(grid), np.zeros(grid.shape, bool), **kwargs)


def pixels(base, grid, **kwargs):
    return np.asarray(paint(base, grid, **kwargs)).astype(int)


@pytest.mark.parametrize("colours", ["jet", "viridis"])
def test_each_pixel_is_its_colour_as_strong_as_its_score(colours):
    rng = np.random.default_rng(1)
    under = rng.integers(0, 256, (40, 50, 3), np.uint8)
    score = np.where(rng.random((40, 50)) < 0.2, np.nan, rng.random((40, 50)))
    blended = blend(under, score, colours=colours, opacity=0.6)
    for (row, column), value in np.ndenumerate(score):
        if np.isnan(value):
            assert np.array_equal(blended[row, column], under[row, column])
        else:
            colour = np.multiply(colormaps[colours](round(value * 255))[:3], 255)
            expected = 0.6 * value * colour + (1 - 0.6 * value) * under[row, column]
            np.testing.assert_allclose(blended[row, column], expected, atol=0.51)


def test_tissue_shows_untouched_where_the_score_is_0():
    under = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert np.array_equal(blend(under, np.zeros((30, 40)), colours="jet"), under)
    assert np.abs(blend(under, np.ones((30, 40)), colours="jet").astype(int) - under).mean() > 40


def test_hot_is_red_and_elsewhere_the_thumbnail_is_untouched():
    thumbnail, grid = hot_and_cold()
    picture = pixels(base_of(thumbnail, grid), grid)
    hot, cold = picture[:, :200], picture[:, 200:400]
    assert (hot[..., 0] > hot[..., 2] + 30).all()
    assert np.abs(cold - thumbnail[:, 200:400]).max() <= round(0.1 * OPACITY * 255)
    assert np.array_equal(picture[:, 401:], thumbnail[:, 401:])  # column 400 is the rim of what was scored


def test_the_rims_lie_just_outside_what_was_scored_and_predicted():
    thumbnail = np.full((480, 640, 3), 200, np.uint8)
    grid = np.full((480, 640), np.nan, np.float32)
    grid[100:300, 100:400] = 0
    predicted = np.zeros(grid.shape, bool)
    predicted[150:200, 150:250] = True
    picture = pixels(MapBase(thumbnail, ~np.isnan(grid), predicted), grid)
    is_scored, is_predicted = (picture == SCORED).all(axis=-1), (picture == PREDICTED).all(axis=-1)
    expected = np.zeros(grid.shape, bool)
    expected[99:301, 99:401] = True
    expected[100:300, 100:400] = False
    assert np.array_equal(is_scored, expected)
    assert not is_predicted[predicted].any()
    rows, columns = np.nonzero(is_predicted)
    breadth = 150 - rows.min()
    assert 1 <= breadth <= 4
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        150 - breadth, 199 + breadth, 150 - breadth, 249 + breadth
    )  # fmt: skip
    assert np.array_equal(pixels(MapBase(thumbnail, ~np.isnan(grid), predicted), None), thumbnail)


def test_sizes_that_do_not_fit_are_refused():
    thumbnail, grid = hot_and_cold()
    with pytest.raises(ValueError, match="does not fit"):
        paint(base_of(thumbnail, grid), grid.T)


def test_outlines_show_on_any_colour_where_they_were_drawn():
    thumbnail, grid = hot_and_cold()
    ring = np.array(
        [[100.0, 50.0], [500.0, 50.0], [500.0, 250.0], [100.0, 250.0]]
    )  # open: its left side is the closing
    plain, drawn = pixels(base_of(thumbnail, grid), grid), pixels(base_of(thumbnail, grid, outlines=[ring]), grid)
    for x, y in ((300, 50), (500, 150), (300, 250), (100, 150)):
        around = drawn[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
        assert around.min() < 60
        assert around.min(axis=1).max() > 200
    changed = (drawn != plain).any(axis=-1)
    assert not changed[60:240, 110:490].any()
    assert not changed[:40].any()


def test_a_tiny_thumbnail_is_enlarged_by_repeating_its_pixels():
    thumbnail, grid = hot_and_cold((25, 40))
    picture = pixels(base_of(thumbnail, grid), None)
    assert np.array_equal(picture[::12, ::12], thumbnail)
    assert np.array_equal(picture[11::12, 11::12], thumbnail)


@pytest.mark.parametrize("shape", [(500, 700), (30, 40)])
def test_the_scale_bar_is_as_long_as_it_says(shape):
    rng = np.random.default_rng(2)
    for um_per_px in 10 ** rng.uniform(-1, 3, 20):
        base = MapBase(np.full((*shape, 3), 200, np.uint8), *np.zeros((2, *shape), bool), um_per_px=um_per_px)
        picture = pixels(base, None)
        is_black = (picture == 0).all(axis=-1)
        length_px = is_black.sum(axis=1).max()
        whole_um = um_per_px * shape[1]
        told = scale_bar_um(whole_um)
        assert whole_um / 4 / 2.5 < told <= whole_um / 4
        assert str(told / 10 ** np.floor(np.log10(told)))[0] in "125"
        assert length_px == pytest.approx(told / um_per_px * base.zoom, abs=1)


def test_no_scale_bar_where_the_resolution_is_not_known():
    thumbnail, grid = hot_and_cold()
    assert np.array_equal(pixels(base_of(thumbnail, grid), None), thumbnail)
