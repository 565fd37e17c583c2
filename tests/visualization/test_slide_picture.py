"""Pictures of a wide grey slide, 2000 by 1200 level-0 px, whose overview has 10 level-0 px to a pixel.

They are drawn at 4 times that, 800 by 480, so a level-0 px is 0.4 px of the picture.
"""

import io
import math
import time

import numpy as np
import pytest
from PIL import Image

from distmil.visualization.slide_picture import MAX_EDGE_PX, MIN_BOX_PX, draw_slide


def decode(content):
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def draw(x=(), y=(), *, shape=(120, 200), scale=10.0, extent_px=200, mask=None, label=None, grey=200, **values):
    return decode(
        draw_slide(
            np.full((*shape, 3), grey, np.uint8),
            scale=scale,
            mask=np.zeros(shape, np.bool_) if mask is None else mask,
            x=np.asarray(x, np.int32),
            y=np.asarray(y, np.int32),
            extent_px=extent_px,
            label_N=None if label is None else np.asarray(label, np.int8),
            **values,
        )
    )


def box_of(is_changed):
    rows, columns = np.nonzero(is_changed)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def changed(picture, *, grey=200, by=60):
    """Return where something is drawn; JPEG blurs lines into their 8 by 8 px blocks, by less than that."""
    return np.abs(picture - grey).max(axis=2) > by


def redness(colour):
    return colour[..., 0] - colour[..., 1:].mean(axis=-1)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (400, 200), (1800, 1000), (500, 700)])
def test_a_patch_is_drawn_where_it_was_cut_on_a_wide_slide(x, y):
    left, top, right, bottom = box_of(changed(draw([x], [y])))
    expected = 0.4 * np.array([x, y, x + 200, y + 200])
    assert np.abs(np.array([left, top, right, bottom]) - expected).max() <= 1


def test_a_shifted_patch_moves_by_its_shift():
    before, after = (box_of(changed(draw([x], [400]))) for x in (400, 450))
    assert np.subtract(after, before).tolist() == [20, 0, 20, 0]


def test_another_scale_or_extent_is_seen():
    widths = [box_of(changed(draw([400], [400], extent_px=edge)))[2] - 160 for edge in (100, 200, 400)]
    assert np.abs(np.subtract(widths, [40, 80, 160])).max() <= 2
    # the same patch on a slide of twice the size
    assert np.abs(np.subtract(box_of(changed(draw([400], [400], scale=20.0))), [80, 80, 120, 120])).max() <= 2


def test_the_grid_leaves_the_inside_of_patches_untouched():
    picture = draw([400, 600], [200, 200])
    assert not changed(picture)[84:156, 164:236].any()
    assert not changed(picture)[84:156, 244:316].any()
    assert changed(picture)[90:150, 239:242].any(axis=1).all()


def test_a_patch_that_ends_on_the_far_rim_has_all_its_sides():
    is_drawn = changed(draw([1800], [1000]))
    assert is_drawn[410:, -1].all()
    assert is_drawn[-1, 730:].all()


def test_positive_patches_are_redder_negative_ones_bluer_and_unknown_ones_untouched():
    picture = draw([200, 600, 1000], [200, 200, 600], label=[1, 0, -1])
    positive, negative, unknown = picture[120, 120], picture[120, 280], picture[280, 440]
    assert redness(positive) > 40
    assert negative[2] - negative[0] > 15
    assert np.abs(unknown - 200).max() < 8


def test_negative_patches_are_tinted_beside_positive_ones_only():
    without = draw([200, 600], [200, 200], label=[0, -1])
    assert np.array_equal(without, draw([200, 600], [200, 200]))


@pytest.mark.parametrize("extent_px", [2, 10, 14])
def test_small_patches_become_one_tinted_area_with_their_labels(extent_px):
    assert extent_px * 0.4 < MIN_BOX_PX
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(400, 1200, extent_px), np.arange(200, 600, extent_px)))
    picture = draw(x, y, extent_px=extent_px)
    expected = 0.4 * np.array([400, 200, x.max() + extent_px, y.max() + extent_px])
    assert np.abs(np.subtract(box_of(changed(picture)), expected)).max() <= 1
    inside = picture[90:230, 170:470]
    assert inside.reshape(-1, 3).std(axis=0).max() < 3
    assert (inside[..., 2] - inside[..., 0] > 20).all()
    labelled = draw(x, y, extent_px=extent_px, label=np.where(x < 800, 1, -1))
    assert (redness(labelled[90:230, 170:310]) > 40).all()
    assert (redness(labelled[90:230, 330:470]) < 0).all()


def test_the_tissue_outline_runs_along_the_edge_of_the_mask():
    mask = np.zeros((120, 200), np.bool_)
    mask[30:80, 50:160] = True
    mask[50:60, 100:120] = False  # a hole
    picture = draw(mask=mask)
    green = picture[..., 1] - picture[..., 0] > 60
    assert box_of(green) == (200, 120, 640, 320)
    assert green[120:122, 200:640].all()
    assert green[120:320, 638:640].all()
    assert box_of(green[180:260, 380:500]) == (18, 18, 102, 62)  # hole at 20..100, 20..60 here, its line in the tissue
    assert not green[126:194, 206:390].any()


def test_tissue_that_reaches_the_rim_is_outlined_there_too():
    picture = draw(mask=np.ones((120, 200), np.bool_))
    green = picture[..., 1] - picture[..., 0] > 60
    assert green[[0, -1]].all()
    assert green[:, [0, -1]].all()
    assert not green[6:-6, 6:-6].any()


@pytest.mark.parametrize("grey", [20, 200, 250])
def test_outlines_show_on_any_colour_where_they_were_drawn(grey):
    ring = np.array([[400.0, 300.0], [1600.0, 300.0], [1600.0, 900.0], [400.0, 900.0]])  # open: its left is the closing
    picture = draw(outlines=[ring], grey=grey)
    for x, y in ((400, 120), (640, 240), (400, 360), (160, 240)):
        around = picture[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3)
        assert (around[:, 0] - around[:, 2]).max() > 150  # yellow
        assert around.max(axis=1).min() < 60  # black
    is_touched = changed(picture, grey=grey)
    assert np.abs(np.subtract(box_of(is_touched), [160, 120, 640, 360])).max() <= 5
    assert not is_touched[130:350, 170:630].any()
    assert not changed(draw(outlines=[ring[:0]])).any()


def test_outlines_and_patches_off_the_slide_do_no_harm():
    ring = np.array([[-(2.0**31), 300], [2.0**31, 300], [2.0**31, 2.0**31], [-(2.0**31), 2.0**31]])
    picture = draw(outlines=[ring])
    assert changed(picture)[118:123].all(axis=1).any()
    assert not changed(picture)[:110].any()
    far = draw([-100, 1900, 5000, -(2**31), 2**31 - 1], [-100, 1100, 5000, -(2**31), 2**31 - 1])
    assert changed(far)[:41, 38:42].any(axis=1).all()
    assert changed(far)[442:, 758:763].any(axis=1).all()
    assert not changed(far)[60:420].any()


@pytest.mark.parametrize(
    "shape", [(12, 16), (16, 12), (1, 3), (120, 200), (699, 701), (1400, 30), (2000, 3000), (3, 4000)]
)
def test_pictures_have_a_readable_size_and_the_slide_s_shape(shape):
    picture = draw([0], [0], shape=shape, scale=200.0, extent_px=224)
    height, width = picture.shape[:2]
    assert 700 <= max(height, width) <= MAX_EDGE_PX
    assert abs(height - shape[0] * width / shape[1]) <= 1 or height == 1
    if max(shape) <= MAX_EDGE_PX:
        assert height % shape[0] == width % shape[1] == 0


def test_a_tiny_slide_at_a_coarse_scale_is_drawn_right():
    # 16 by 12 px of 200 level-0 px each, drawn 44 times larger: 0.22 picture px to a level-0 px
    picture = draw([224 * 3], [224 * 2], shape=(12, 16), scale=200.0, extent_px=224, label=[1])
    assert picture.shape == (528, 704, 3)
    expected = 0.22 * 224 * np.array([3, 2, 4, 3])
    assert np.abs(np.subtract(box_of(changed(picture)), expected)).max() <= 2
    assert redness(picture[round(0.22 * 224 * 2.5), round(0.22 * 224 * 3.5)]) > 40


def test_a_large_overview_is_reduced_with_all_that_is_drawn_on_it():
    mask = np.zeros((2100, 2800), np.bool_)
    mask[1400:2000, 400:800] = True
    picture = draw([20_000], [2000], shape=(2100, 2800), extent_px=2000, mask=mask)
    assert picture.shape == (1050, 1400, 3)
    green = picture[..., 1] - picture[..., 0] > 60
    assert np.abs(np.subtract(box_of(green[:, :900]), [200, 700, 400, 1000])).max() <= 1
    assert np.abs(np.subtract(box_of(changed(picture[:600])), [1000, 100, 1100, 200])).max() <= 2


def test_the_same_slide_gives_the_same_bytes_and_its_arrays_stay_as_they_are():
    overview = np.random.default_rng(0).integers(0, 255, (720, 900, 3), np.uint8)
    mask, x, ring = overview[..., 0] > 99, np.array([90], np.int32), np.array([[1.0, 2], [300, 4], [5, 600]])
    kept = overview.copy(), mask.copy(), x.copy(), ring.copy()
    first, second = (
        draw_slide(overview, scale=1, mask=mask, x=x, y=x, extent_px=90, outlines=[ring]) for _ in range(2)
    )
    assert first == second
    for before, after in zip(kept, (overview, mask, x, ring), strict=True):
        assert np.array_equal(before, after)


def test_hundreds_of_thousands_of_patches_are_drawn_in_a_moment():
    n = 400_000
    x, y = np.arange(n) % 700 * 128, np.arange(n) // 700 * 128
    start = time.process_time()
    draw(x, y, shape=(1100, 1400), scale=64.0, extent_px=128, label=x // 5000 % 3 - 1)
    assert time.process_time() - start < 5  # about 0.4 s; the limit is for busy machines


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit a mask"):
        draw(mask=np.zeros((200, 120), np.bool_))
    with pytest.raises(ValueError, match="one length"):
        draw([0, 1], [0])
    with pytest.raises(ValueError, match="one length"):
        draw([0], [0], label=[1, 1])
    with pytest.raises(ValueError, match="must be positive"):
        draw([0], [0], extent_px=0)
    with pytest.raises(ValueError, match="must be positive"):
        draw(scale=math.nan)
