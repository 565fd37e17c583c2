"""The words of a slide's maps."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distmil.cohort import Slide
from distmil.visualization import slide_maps
from distmil.visualization.heatmap import render
from distmil.visualization.slide_maps import MAPS, Reading, draw_maps
from tests.support.slides import save_image, save_pyramid, tissue_image

SIZE = (300, 200)
READING = Reading(
    probability=0.7, slide_score="bag", threshold=0.5, predicted="car", abnormal="car", patch_threshold=0.5
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "noun", "legend"),
    [
        ("a.png", "image", "scored inside the grey line"),
        ("a.tif", "slide", "scored inside the grey line; elsewhere no tissue was found, or it was left out"),
    ],
)
def test_plain_images_are_called_images_and_have_no_tissue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, noun: str, legend: str
) -> None:
    pixels, path = tissue_image(SIZE), tmp_path / name
    if noun == "image":
        save_image(path, pixels)
    else:
        save_pyramid(path, pixels)
    scores = {score: pa.array(np.full(1, 0.7, np.float32)) for score in MAPS}
    place = {column: pa.array([value], pa.int32()) for column, value in (("x", 20), ("y", 30), ("extent_px", 64))}
    drawn: list[Any] = []
    monkeypatch.setattr(slide_maps, "render", lambda *given: drawn.append(given) or render(*given))
    found = draw_maps(
        Slide("s", str(path)), pa.table(place | scores), READING, outlines=lambda: None, size=SIZE, mpp=None,
        max_px=300, reader="auto",
    )  # fmt: skip
    assert found.doubts == []
    panels, frame = drawn[-1]
    assert panels[0].caption == noun
    assert frame.legend[-1].text == legend
