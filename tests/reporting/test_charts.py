"""Paths lead back to the values, and ticks are round and hold them."""

import math
import re

import numpy as np
import pytest

from distmil.reporting.charts import BOTTOM, LEFT, NUM_SERIES, RIGHT, TOP, Axis, Plane, shape
from tests.support.scale import cases

NUMBER = r"-?[\d.]+(?:e-?\d+)?"
PIXELS = (RIGHT - LEFT, BOTTOM - TOP)


def values_of(plane, path):
    """Read the points of each part of a path back into values."""
    parts = [part for part in path.replace("Z", "").split("M") if part]
    return [[back(plane, *map(float, pair.split(","))) for pair in part.split("L")] for part in parts]


def back(plane, x, y):
    across = plane.x.low + (x - LEFT) / (RIGHT - LEFT) * (plane.x.high - plane.x.low)
    return across, plane.y.low + (BOTTOM - y) / (BOTTOM - TOP) * (plane.y.high - plane.y.low)


def some_values(rng, num):
    return rng.normal(size=num) * 10.0 ** rng.integers(-6, 7) + rng.normal() * 10.0 ** rng.integers(-3, 4)


def test_ticks_are_round_evenly_spaced_and_hold_the_values():
    rng = np.random.default_rng(0)
    for _ in range(cases(200, full=5000)):
        values = some_values(rng, int(rng.integers(1, 6)))
        is_whole = bool(rng.random() < 0.3)
        axis = Axis.over("", [*values, None, math.nan], is_whole=is_whole)
        places = np.array([place for place, _ in axis.ticks])
        assert axis.low <= min(values)
        assert axis.high >= max(values)
        assert (places[0], places[-1]) == (axis.low, axis.high)
        assert 2 <= len(places) <= 8
        step = (axis.high - axis.low) / (len(places) - 1)
        np.testing.assert_allclose(np.diff(places), step, rtol=1e-6)
        digit = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digit - one) for one in (1, 2, 5)) < 1e-6
        if is_whole:
            assert step >= 1 - 1e-9
        if len(places) > 3:  # no step twice as fine would do
            assert (
                axis.high - axis.low
                < 2.5 * max(np.ptp(values), abs(max(values)) * (np.ptp(values) == 0)) + 2 * is_whole
            )


def test_an_axis_of_nothing_is_an_axis():
    assert Axis.over("x", [None]).ticks[0] == (0.0, "0")


def test_a_line_leads_back_to_its_values_and_breaks_where_one_is_not_known():
    rng = np.random.default_rng(1)
    for _ in range(cases(100, full=2000)):
        num = int(rng.integers(1, 12))
        x, y = np.sort(some_values(rng, num)), some_values(rng, num)
        plane = Plane(Axis.over("", x), Axis.over("", y))
        is_known = rng.random(num) < 0.7
        shown = np.where(is_known, y, np.nan)
        found = values_of(plane, plane.line(x, shown))
        expected = [list(run) for run in runs(zip(x, shown, strict=True))]
        assert [len(part) for part in found] == [len(part) for part in expected]
        scale = np.array([plane.x.high - plane.x.low, plane.y.high - plane.y.low]) / PIXELS
        for part, own in zip(found, expected, strict=True):
            assert (np.abs(np.array(part) - own) <= 0.051 * scale).all()  # a tenth of a pixel


def runs(points):
    """Split points at those that are not known."""
    run = []
    for point in points:
        if np.isnan(point[1]):
            if run:
                yield run
            run = []
        else:
            run.append(point)
    if run:
        yield run


def test_a_band_goes_there_below_and_back_above():
    plane = Plane(Axis.of_share("x"), Axis.of_share("y"))
    path = plane.band([0, 0.5, 1], [0, 0.25, math.nan], [0.5, 0.75, 1])
    assert path.endswith("Z")
    (ring,) = values_of(plane, path)
    np.testing.assert_allclose(ring, [(0, 0), (0.5, 0.25), (0.5, 0.75), (0, 0.5)], atol=1e-3)
    assert plane.band([0, 1], [math.nan] * 2, [1, 1]) == ""


def test_the_corners_of_the_plane():
    plane = Plane(Axis.of_share(""), Axis("", -1, 3, [(0, "0")]))
    np.testing.assert_allclose(plane.place([0, 1], [-1, 3]), [(LEFT, BOTTOM), (RIGHT, TOP)])
    assert list(plane.y_ticks()) == [(f"{BOTTOM - (BOTTOM - TOP) / 4:g}", "0")]


@pytest.mark.parametrize("series", range(NUM_SERIES))
def test_each_series_has_a_shape_of_its_own_around_its_point(series):
    drawn = shape((100, 50), series)
    assert drawn not in {shape((100, 50), other) for other in range(NUM_SERIES) if other != series}
    start = [float(number) for number in re.findall(NUMBER, drawn)[:2]]
    assert math.dist(start, (100, 50)) < 8
    plane = Plane(Axis.of_share(""), Axis.of_share(""))
    assert plane.dots([0.1, math.nan, 0.3], [0.1, 0.2, 0.3], series=series).count("M") == 2
