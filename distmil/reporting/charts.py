"""Charts as SVG: values in, paths and ticks in pixels out. ``charts.html.j2`` draws them.

N points. A look is a class of the pages' style sheet: ``line s0`` is a line of the first series, which has a colour, a
dash and, as a dot, a shape of its own.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 360, 290
"""Of a chart, in its own pixels."""
LEFT, RIGHT, TOP, BOTTOM = 50, 348, 10, 248
"""Of the plane within it."""
_MOST_TICKS = 6
_RADIUS, RING = 3.6, 6.0
"""Of a dot, and of a ring around one."""
_ARM = 0.4
_POLYGONS: Sequence[Sequence[tuple[float, float]]] = (
    (),
    ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    (
        (-_ARM, -1.1),
        (_ARM, -1.1),
        (_ARM, -_ARM),
        (1.1, -_ARM),
        (1.1, _ARM),
        (_ARM, _ARM),
        (_ARM, 1.1),
        (-_ARM, 1.1),
        (-_ARM, _ARM),
        (-1.1, _ARM),
        (-1.1, -_ARM),
        (-_ARM, -_ARM),
    ),
    ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
)
"""Corners of the shape of each series, in radii; a circle has none."""
NUM_SERIES = len(_POLYGONS)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """An axis: its title, its ends, and its ticks with their labels."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def of_share(cls, title: str) -> "Axis":
        """Make an axis from 0 to 1."""
        return cls(title, 0.0, 1.0, [(tick / 4, f"{tick / 4:g}") for tick in range(5)])

    @classmethod
    def over(cls, title: str, values: Iterable[float | None], *, is_whole: bool = False) -> "Axis":
        """Make an axis that holds values, from a round tick to a round tick.

        Args:
            title: Of the axis.
            values: What it must hold; None and what is not finite does not count.
            is_whole: Ticks are whole numbers.
        """
        known = [value for value in values if value is not None and math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        step = _step((high - low) or abs(high) or 1.0, is_whole=is_whole)
        first, last = math.floor(low / step), math.ceil(high / step)
        last += first == last
        ticks = [(i * step, f"{i * step:.6g}") for i in range(first, last + 1)]
        return cls(title, first * step, last * step, ticks)


def _step(span: float, *, is_whole: bool) -> float:
    """Find the smallest step of 1, 2 or 5 times a power of ten that makes at most ``_MOST_TICKS`` of a span."""
    power = math.floor(math.log10(span)) - 1
    steps = (digit * 10.0**exponent for exponent in itertools.count(power) for digit in (1, 2, 5))
    return next(step for step in steps if span / step <= _MOST_TICKS - 1 and (step >= 1 or not is_whole))


@dataclass(frozen=True)
class Mark:
    """Something drawn: a path of a look."""

    path: str
    look: str
    title: str = ""
    """Shown where a pointer rests on it."""
    link: str = ""


@dataclass(frozen=True)
class Key:
    """A line of the legend."""

    look: str
    text: str
    sample: str = "M1 7H25"
    """A path of 26 x 14 pixels."""


@dataclass(frozen=True)
class Chart:
    """Marks in a plane, with their legend."""

    title: str
    plane: "Plane"
    marks: Sequence[Mark]
    keys: Sequence[Key] = ()
    note: str = ""


@dataclass(frozen=True)
class Plane:
    """Two axes, and where values lie between them in pixels."""

    x: Axis
    y: Axis

    def place(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Place values in pixels, N x 2; y grows upwards."""
        across = LEFT + (np.asarray(x, np.float64) - self.x.low) / (self.x.high - self.x.low) * (RIGHT - LEFT)
        up = BOTTOM - (np.asarray(y, np.float64) - self.y.low) / (self.y.high - self.y.low) * (BOTTOM - TOP)
        return np.stack(np.broadcast_arrays(np.atleast_1d(across), np.atleast_1d(up)), axis=1)

    def x_ticks(self) -> Iterator[tuple[str, str]]:
        """Yield the place of each tick below the plane, and its label."""
        return ((_text(self.place(value, self.y.low)[0, 0]), label) for value, label in self.x.ticks)

    def y_ticks(self) -> Iterator[tuple[str, str]]:
        """Yield the place of each tick left of the plane, and its label."""
        return ((_text(self.place(self.x.low, value)[0, 1]), label) for value, label in self.y.ticks)

    def line(self, x: ArrayLike, y: ArrayLike) -> str:
        """Draw a line through points; it is broken where a value is not known (NaN)."""
        parts, is_open = [], False
        for point in self.place(x, y):
            is_known = bool(np.isfinite(point).all())
            if is_known:
                parts.append(f"{'L' if is_open else 'M'}{_pair(point)}")
            is_open = is_known
        return "".join(parts)

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike) -> str:
        """Draw the area between two lines over the same x, where both are known."""
        x_N, low_N, high_N = (np.asarray(values, np.float64) for values in (x, low, high))
        is_known = np.isfinite(low_N) & np.isfinite(high_N)
        if not is_known.any():
            return ""
        there, back = self.place(x_N[is_known], low_N[is_known]), self.place(x_N[is_known], high_N[is_known])
        return "M" + "L".join(map(_pair, [*there, *back[::-1]])) + "Z"

    def dots(self, x: ArrayLike, y: ArrayLike, *, series: int = 0) -> str:
        """Draw the shape of a series at every point that is known, all in one path."""
        points = self.place(x, y)
        return "".join(shape(point, series) for point in points[np.isfinite(points).all(axis=1)])

    def ring(self, x: float, y: float) -> str:
        """Draw a ring around a point."""
        return shape(self.place(x, y)[0], 0, radius=RING)


def look(kind: str, series: int) -> str:
    """Name the look of a series' line, band or dot."""
    return f"{kind} s{series % NUM_SERIES}"


def shape(centre: ArrayLike, series: int, *, radius: float = _RADIUS) -> str:
    """Draw the shape of a series around a point in pixels: a circle for the first one, then polygons."""
    x, y = (float(value) for value in np.asarray(centre, np.float64))
    corners = _POLYGONS[series % NUM_SERIES]
    if not corners:
        r, wide = radius, 2 * radius
        return f"M{_pair((x - r, y))}a{r:g},{r:g} 0 1 0 {wide:g},0a{r:g},{r:g} 0 1 0 {-wide:g},0Z"
    return "M" + "L".join(_pair((x + radius * across, y + radius * down)) for across, down in corners) + "Z"


def dot_key(series: int, text: str) -> Key:
    """Make the legend's line of a series of dots."""
    return Key(look("dot", series), text, shape((13, 7), series))


def _pair(point: Sequence[float] | Floats) -> str:
    return f"{_text(point[0])},{_text(point[1])}"


def _text(value: float) -> str:
    return f"{round(float(value), 1) + 0.0:g}"
