"""The slides that are shown are those that deserve a look, and their pictures are small."""

import io

import numpy as np
from PIL import Image

from distmil.evaluation.slide_results import RIGHT, WRONG, SlideResult
from distmil.reporting.gallery import EACH, PICTURE_PX, choose_slides, small_picture, within_frame
from distmil.visualization.heatmap import Frame, Key, Panel, encode_png, render
from tests.evaluation.test_comparison import some_results
from tests.support.scale import cases


def test_slides_are_chosen_by_their_distance_from_the_threshold_and_once():
    rng = np.random.default_rng(0)
    for _ in range(cases(100, full=2000)):
        results = some_results(rng, int(rng.integers(0, 40)))
        found = choose_slides(results)
        most = min(EACH, -(-len(results) // 3))
        chosen = [one.slide_id for kind in found.values() for one in kind]
        assert len(chosen) == len(set(chosen)) <= 3 * EACH
        wrong = sorted(one.margin for one in results if one.verdict == WRONG)[::-1]
        assert [one.margin for one in found["worst"]] == wrong[:most]
        rest = [one for one in results if one not in found["worst"]]
        assert [one.margin for one in found["most uncertain"]] == sorted(one.margin for one in rest)[:most]
        right = [one for one in rest if one.verdict == RIGHT and one not in found["most uncertain"]]
        assert [one.margin for one in found["best"]] == sorted((one.margin for one in right), reverse=True)[:most]


def test_slides_without_a_label_are_not_chosen():
    assert not any(choose_slides([SlideResult("a", "ok", probability=0.5), SlideResult("b", "no_tissue")]).values())


def test_a_map_loses_what_is_around_it():
    rng = np.random.default_rng(1)
    for _ in range(cases(12, full=200)):
        size = tuple(int(edge) for edge in rng.integers(40, 700, 2))
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        keys = [Key("annotated", "annotated"), Key("scored", "scored inside the grey line")]
        drawn = render([Panel(Image.fromarray(pixels))], Frame("a-slide: fused", "probability 0.95", keys))
        np.testing.assert_array_equal(np.asarray(within_frame(drawn)), pixels)
        made = small_picture(encode_png(drawn))
        with Image.open(io.BytesIO(made)) as image:
            assert image.format == "JPEG"
            assert max(image.size) == min(PICTURE_PX, max(size))
        assert made == small_picture(encode_png(drawn))


def test_a_picture_without_a_frame_is_kept_whole():
    image = Image.new("RGB", (60, 40), (255, 255, 255))
    assert within_frame(image).size == (60, 40)
