import io
import time

import numpy as np
import pytest
from PIL import Image

from distmil.visualization.heatmap import encode_png, plan_layout, render_map, score_grid

WIDE = (1000, 600)  # slide, level-0 px
MAP = (100, 60)  # its map: 10 level-0 px a pixel


def grid_of(x, y, score, *, extent_px=100, slide_size=WIDE, map_size=MAP):
    return score_grid(x, y, extent_px, score, slide_size=slide_size, map_size=map_size)


def hot_and_cold(shape=(300, 600)):
    """Return a grey thumbnail and its map: hot on the left, cold in the middle, nothing on the right."""
    grid = np.full(shape, np.nan, np.float32)
    grid[:, : shape[1] // 3] = 0.9
    grid[:, shape[1] // 3 : 2 * shape[1] // 3] = 0.1
    return np.random.default_rng(0).integers(150, 250, (*shape, 3), np.uint8), grid


def picture_of(image, grid, *, subtitle=""):
    layout = plan_layout(grid.shape[::-1], has_subtitle=bool(subtitle))
    return np.asarray(image.crop(layout.picture))


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
    assert covered.min() == 0  # not -1e-13, which render_map would refuse
    assert covered.max() <= 1


@pytest.mark.parametrize("score", [np.nan, np.inf, -0.01, 1.01])
def test_scores_that_are_none_are_refused(score):
    with pytest.raises(ValueError, match="1 of 2 scores"):
        grid_of([0, 100], [0, 0], [0.5, score])
    thumbnail, grid = hot_and_cold()
    if not np.isnan(score):  # NaN in a map means that no patch lies there
        grid[3, 4] = score
        with pytest.raises(ValueError, match="scores lie outside"):
            render_map(thumbnail, grid, title="t")


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one length"):
        grid_of([0, 1], [0], [0.5, 0.5])
    with pytest.raises(ValueError, match="extent_px must be positive"):
        grid_of([0], [0], [0.5], extent_px=0)
    thumbnail, grid = hot_and_cold()
    with pytest.raises(ValueError, match="does not fit"):
        render_map(thumbnail, grid.T, title="t")


def test_hot_is_red_cold_is_blue_and_elsewhere_the_thumbnail_is_untouched():
    thumbnail, grid = hot_and_cold()
    picture = picture_of(render_map(thumbnail, grid, title="t"), grid).astype(int)
    hot, cold = picture[:, :200], picture[:, 200:400]
    assert (hot[..., 0] > hot[..., 2] + 30).all()
    assert (cold[..., 2] > cold[..., 0] + 30).all()
    assert np.array_equal(picture[:, 400:], thumbnail[:, 400:])


def test_opacity_zero_shows_the_thumbnail_and_one_the_map_alone():
    thumbnail, grid = hot_and_cold()
    assert np.array_equal(picture_of(render_map(thumbnail, grid, title="t", opacity=0), grid), thumbnail)
    opaque = picture_of(render_map(thumbnail, grid, title="t", opacity=1), grid)
    assert len(np.unique(opaque[:, :200].reshape(-1, 3), axis=0)) == 1


def test_the_ends_of_the_colour_bar_are_the_ends_of_the_map():
    thumbnail, grid = hot_and_cold()
    grid[:, :200], grid[:, 200:400] = 1, 0
    image = render_map(thumbnail, grid, title="t", opacity=1)
    layout = plan_layout((600, 300), has_subtitle=False)
    left, top, right, bottom = layout.bar
    middle = (left + right) // 2
    picture = picture_of(image, grid)
    assert image.getpixel((middle, top)) == tuple(picture[10, 10])
    assert image.getpixel((middle, bottom - 1)) == tuple(picture[10, 300])


def test_outlines_show_on_any_colour_where_they_were_drawn():
    thumbnail, grid = hot_and_cold()
    ring = np.array(
        [[100.0, 50.0], [500.0, 50.0], [500.0, 250.0], [100.0, 250.0]]
    )  # open: its left side is the closing
    plain = picture_of(render_map(thumbnail, grid, title="t"), grid).astype(int)
    drawn = picture_of(render_map(thumbnail, grid, title="t", outlines=[ring]), grid).astype(int)
    for x, y in ((300, 50), (500, 150), (300, 250), (100, 150)):
        around = drawn[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
        assert around.min() < 60
        assert around.min(axis=1).max() > 200
    changed = (drawn != plain).any(axis=-1)
    assert not changed[60:240, 110:490].any()
    assert not changed[:40].any()


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (3, 2), (1400, 900), (900, 1400), (600, 20), (20, 600)])
@pytest.mark.parametrize("has_subtitle", [False, True])
def test_title_picture_and_bar_never_touch(size, has_subtitle):
    layout = plan_layout(size, has_subtitle=has_subtitle)
    left, top, right, bottom = layout.picture
    assert (right - left, bottom - top) == (size[0] * layout.zoom, size[1] * layout.zoom)
    assert max(right - left, bottom - top) >= 480
    assert left >= layout.font_px
    assert top >= 2 * layout.font_px
    assert right + layout.font_px <= layout.bar[0]
    assert layout.bar[2] + 2 * layout.font_px < layout.canvas[0]
    assert max(bottom, layout.bar[3]) < layout.canvas[1]
    assert layout.bar[3] - layout.bar[1] >= 4 * 2 * layout.font_px  # five labels, each with a line to spare


def test_a_tiny_thumbnail_is_enlarged_by_repeating_its_pixels():
    thumbnail, grid = hot_and_cold((25, 40))
    grid[:] = np.nan
    picture = picture_of(render_map(thumbnail, grid, title="t"), grid)
    assert np.array_equal(picture[::12, ::12], thumbnail)
    assert np.array_equal(picture[11::12, 11::12], thumbnail)


@pytest.mark.parametrize("subtitle", ["", "below"])
def test_long_titles_are_shortened_to_the_canvas(subtitle):
    thumbnail, grid = hot_and_cold((40, 25))
    layout = plan_layout((25, 40), has_subtitle=bool(subtitle))
    short, long, longer = (
        np.asarray(render_map(thumbnail, grid, title=title, subtitle=subtitle))
        for title in ("ab", "ab" * 200, "ab" * 300)
    )
    ink = (long[: 2 * layout.font_px] < 128).any(axis=(0, 2)).nonzero()[0]
    assert layout.canvas[0] - 3 * layout.font_px < ink.max() < layout.canvas[0] - layout.font_px
    assert np.array_equal(long, longer)
    assert not np.array_equal(short, long)
    assert np.array_equal(short[layout.picture[1] :], long[layout.picture[1] :])


def test_png_holds_the_pixels_and_nothing_else():
    thumbnail, grid = hot_and_cold()
    image = render_map(thumbnail, grid, title="a", subtitle="b")
    again = render_map(thumbnail, grid, title="a", subtitle="b")
    again.info["comment"] = "secret"
    again.info["icc_profile"] = b"profile"
    content = encode_png(image)
    assert content == encode_png(again)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(image))
    assert [name for name in (b"tEXt", b"iCCP", b"tIME", b"eXIf") if name in content] == []
    assert again.info["comment"] == "secret"
