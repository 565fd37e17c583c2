import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from distmil.visualization.colours import blend
from distmil.visualization.heatmap import Frame, Key, Panel, encode_png, plan_layout, render

SIZES = [(480, 300), (300, 480), (480, 320), (1400, 900), (900, 1400), (600, 20), (20, 600)]


def picture(size=(600, 300), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(150, 250, (size[1], size[0], 3), np.uint8))


def touch(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_panels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("is_rich", [False, True])
def test_title_pictures_bar_and_legend_never_touch(size, num_panels, is_rich):
    keys = 3 * is_rich
    layout = plan_layout(size, num_panels=num_panels, has_subtitle=is_rich, has_captions=is_rich, num_keys=keys)
    letter = layout.font_px
    assert len(layout.pictures) == num_panels
    for left, top, right, bottom in layout.pictures:
        assert (right - left, bottom - top) == size
        assert left >= letter
        assert top >= round(letter * (4.3 if is_rich else 2.7)) + is_rich * letter  # the lines above, and a caption
        assert right + letter <= layout.bar[0]
        assert bottom < layout.legend_top
    assert not any(touch(one, other) for one, other in combinations(layout.pictures, 2))
    assert layout.bar[2] + 2 * letter < layout.canvas[0]
    assert layout.bar[3] < layout.legend_top
    assert layout.bar[3] - layout.bar[1] >= 4 * 2 * letter  # five labels, each with a line to spare
    assert layout.legend_top + 1.5 * letter * keys <= layout.canvas[1]


def test_four_pictures_of_ordinary_shape_make_a_square_and_long_ones_a_row():
    def places(size):
        found = plan_layout(size, num_panels=4).pictures
        return len({box[0] for box in found}), len({box[1] for box in found})

    assert places((1024, 700)) == (2, 2)
    assert places((1400, 300)) == (1, 4)
    assert places((500, 1400)) == (4, 1)


def test_pictures_lie_where_the_layout_says():
    panels = [Panel(picture(seed=i), f"picture {i}") for i in range(4)]
    image = render(panels, Frame("title", "subtitle", [Key("scored", "scored")]))
    layout = plan_layout((600, 300), num_panels=4, has_subtitle=True, has_captions=True, num_keys=1)
    assert image.size == layout.canvas
    for panel, box in zip(panels, layout.pictures, strict=True):
        assert np.array_equal(np.asarray(image.crop(box)), np.asarray(panel.picture))


@pytest.mark.parametrize("colours", ["jet", "viridis"])
def test_the_colour_bar_is_the_map_on_white(colours):
    image = render([Panel(picture())], Frame("t", colours=colours))
    left, top, right, bottom = plan_layout((600, 300)).bar
    middle = (left + right) // 2
    white = np.full((1, 2, 3), 255, np.uint8)
    zero, one = blend(white, np.array([[0.0, 1.0]]), colours=colours)[0]
    assert image.getpixel((middle, top)) == tuple(one)
    assert image.getpixel((middle, bottom - 1)) == tuple(zero)


@pytest.mark.parametrize("subtitle", ["", "below"])
def test_long_titles_are_shortened_to_the_canvas(subtitle):
    panel = Panel(picture((300, 480)))
    layout = plan_layout((300, 480), has_subtitle=bool(subtitle))
    short, long, longer = (
        np.asarray(render([panel], Frame(title, subtitle))) for title in ("ab", "ab" * 200, "ab" * 300)
    )
    ink = (long[: 2 * layout.font_px] < 128).any(axis=(0, 2)).nonzero()[0]
    assert layout.canvas[0] - 3 * layout.font_px < ink.max() < layout.canvas[0] - layout.font_px
    assert np.array_equal(long, longer)
    assert not np.array_equal(short, long)
    top = layout.pictures[0][1]
    assert np.array_equal(short[top:], long[top:])


def test_the_legend_shows_each_line_with_its_words():
    panel = Panel(picture())
    layout = plan_layout((600, 300), num_keys=1)
    seen = []
    for kind in ("annotated", "predicted", "scored"):
        rows = np.asarray(render([panel], Frame("t", legend=[Key(kind, "words")])))[layout.legend_top :]
        sample, words = rows[:, : 3 * layout.font_px], rows[:, 4 * layout.font_px :]
        assert (sample < 200).any()
        assert (words < 128).any()
        seen.append(sample.tobytes())
    assert len(set(seen)) == 3


def test_png_holds_the_pixels_and_nothing_else():
    image, again = (render([Panel(picture())], Frame("a", "b")) for _ in range(2))
    again.info["comment"] = "secret"
    again.info["icc_profile"] = b"profile"
    content = encode_png(image)
    assert content == encode_png(again)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(image))
    assert [name for name in (b"tEXt", b"iCCP", b"tIME", b"eXIf") if name in content] == []
    assert again.info["comment"] == "secret"
