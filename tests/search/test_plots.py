"""Pictures of a search: they are there, hold what was tried, and take the odd cases."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distmil.search.comparison import Spread
from distmil.search.plots import comparison_plot, parallel_coordinates, parameter_plots
from distmil.search.space import Domain
from distmil.search.trial import Trial

SPACE = {
    "bags.top_k": Domain("choice", (1, 8, 32)),
    "losses.bag": Domain("loguniform", (0.1, 10.0)),
    "model.dropout": Domain("uniform", (0.0, 0.5)),
    "model.feature_dim": Domain("int", (16, 512)),
}
DEFAULT = {"bags.top_k": 8, "losses.bag": 1.0, "model.dropout": 0.25, "model.feature_dim": 512}
RED = (214, 39, 40)


def make_record(number: int, status: Any = "finished", score: float | None = None) -> Trial:
    generator = np.random.default_rng(number)
    values = {
        "bags.top_k": [1, 8, 32][number % 3],
        "losses.bag": float(10 ** generator.uniform(-1, 1)),
        "model.dropout": float(generator.uniform(0, 0.5)),
        "model.feature_dim": int(generator.integers(16, 513)),
    }
    score = float(generator.uniform(0.3, 0.6)) if score is None else score
    return Trial(values, 0, is_repeat=False, number=number, status=status, score=score)


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def share_of(colour: tuple[int, int, int], image: NDArray[np.uint8]) -> float:
    return float((np.abs(image.astype(int) - colour).max(axis=2) < 40).mean())


@pytest.mark.parametrize("count", [1, 2, 24])
def test_the_best_trial_is_red_among_its_axes(count: int) -> None:
    records = [make_record(i, "stopped" if i % 2 else "finished") for i in range(count)]
    image = pixels(parallel_coordinates(records, SPACE, metric="slide_auc", winner=records[0].values))
    assert share_of(RED, image) > 0.002
    without = pixels(parallel_coordinates(records, SPACE, metric="slide_auc", winner={}))
    assert share_of(RED, without) == 0


def test_trials_without_a_score_are_left_out() -> None:
    failed = Trial(dict(DEFAULT), 0, is_repeat=False, number=9, status="failed")
    records = [make_record(i) for i in range(3)]
    one = parallel_coordinates([*records, failed], SPACE, metric="loss", winner=records[1].values)
    assert (pixels(one) == pixels(parallel_coordinates(records, SPACE, metric="loss", winner=records[1].values))).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_each_parameter_has_a_panel(count: int) -> None:
    space = dict(list(SPACE.items())[:count])
    image = pixels(parameter_plots([make_record(i) for i in range(9)], space, metric="slide_auc", default=DEFAULT))
    assert image.shape[1] == pytest.approx(440 * min(3, count), abs=5)
    assert share_of((31, 119, 180), image) > 0.0005  # trials
    assert share_of((255, 127, 14), image) > 0.0003  # the default


def test_a_default_outside_of_the_space_is_not_drawn() -> None:
    space = {"bags.top_k": Domain("choice", (1, 2))}
    records = [Trial({"bags.top_k": k}, 0, is_repeat=False, number=k, status="finished", score=0.5) for k in (1, 2)]
    image = pixels(parameter_plots(records, space, metric="slide_auc", default=DEFAULT))
    assert share_of((255, 127, 14), image) == 0


def test_every_setting_has_a_row_with_its_mean() -> None:
    spreads = {name: Spread((0.4, 0.5, 0.6)) for name in ("default", "best", "best without bag")}
    few = pixels(comparison_plot({"default": spreads["default"]}, metric="slide_auc"))
    many = pixels(comparison_plot(spreads, metric="slide_auc"))
    assert many.shape[0] > few.shape[0]
    assert min(share_of(RED, many), share_of(RED, few)) > 0.001
