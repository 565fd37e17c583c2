import cv2
import numpy as np
import pytest

from distmil.exporting.frame import Frame
from distmil.exporting.slide_export import SlideExport
from distmil.viewing.drawing import Drawing
from distmil.viewing.maps import ValueMaps
from distmil.viewing.slide_list import Listed, first_look
from distmil.viewing.slide_view import SlideView
from tests.support.scale import cases
from tests.support.scored import random_case


@pytest.mark.parametrize("seed", range(cases(60, full=2000)))
def test_a_maps_pixel_has_the_value_of_the_table(seed: int) -> None:
    case = random_case(seed)
    maps = ValueMaps(case.patches)
    names = ("attention", "probability", "fused", "agreement")
    pictures = {name: cv2.imdecode(np.frombuffer(maps.png(name), np.uint8), cv2.IMREAD_UNCHANGED) for name in names}
    cells = set()
    for i in range(len(case.patches)):
        column = round((int(case.patches.x_N[i]) - maps.corner[0]) / maps.step)
        row = round((int(case.patches.y_N[i]) - maps.corner[1]) / maps.step)
        cells.add((row, column))
        for name in names:
            grey = pictures[name][row, column]
            assert grey[3] == 255
            assert abs(int(grey[0]) / 255 - float(case.patches.scores[name][i])) <= 0.5 / 255 + 1e-6
            assert grey[0] == grey[1] == grey[2]
        # the pixel lies where the patch lies
        assert abs(maps.corner[0] + column * maps.step - case.patches.x_N[i]) <= 0.5 * maps.step
    assert len(cells) == len(case.patches)
    for picture in pictures.values():
        assert picture.shape[:2] == (maps.size[1], maps.size[0])
        assert (picture[..., 3] > 0).sum() == len(cells)


@pytest.mark.parametrize("seed", range(cases(40, full=1000)))
def test_top_patches_have_the_highest_fused_scores(seed: int) -> None:
    case = random_case(seed)
    export = SlideExport("s", case.patches, Frame(0, 0, *case.size), case.mpp, 0.5)
    top = SlideView(export, _none, Drawing, "", num_top=5).top()
    by_place = {(row["x"], row["y"]): row["fused"] for row in case.table.to_pylist()}
    assert [by_place[one["x"], one["y"]] for one in top] == sorted(by_place.values(), reverse=True)[:5]


def test_sure_mistakes_come_first() -> None:
    def listed(name: str, probability: float, label: str) -> Listed:
        return Listed(name, probability, 0.2, "b" if probability >= 0.2 else "a", label)

    slides = [
        listed("right", 0.9, "b"), listed("unknown", 0.95, ""), listed("missed", 0.02, "b"),
        listed("false", 0.6, "a"), listed("near", 0.21, "a"),
    ]  # fmt: skip
    # 0.02 is 90 % of the way from 0.2 to 0; 0.6 is half of the way from 0.2 to 1
    assert [round(slide.disagreement or 0, 4) for slide in slides] == [0, 0, 0.9, 0.5, 0.0125]
    assert [slide.slide_id for slide in first_look(slides)] == ["missed", "false", "near", "unknown", "right"]
    assert slides[1].disagreement is None
    assert Listed("s", 1.0, 1.0, "b", "a").disagreement == 1


def _none():
    raise AssertionError("no tile was asked for")
