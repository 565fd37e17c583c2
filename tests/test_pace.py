"""The time left, against work of known length."""

import numpy as np
import pytest

from distmil import pace as module
from distmil.pace import Pace, in_words


@pytest.mark.parametrize("seed", range(5))
def test_the_time_left_is_right_from_a_quarter_on(monkeypatch, seed):
    """Slides of unlike size on two workers that take a while to start; the amount of work of each is known."""
    rng = np.random.default_rng(seed)
    work = rng.integers(200, 4000, 60)
    seconds = work / 400 * rng.uniform(0.9, 1.1, 60)
    free, ends = [12.0, 13.0], []
    for i, duration in enumerate(seconds):
        worker = int(np.argmin(free))
        free[worker] += duration
        ends.append((free[worker], i))
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    pace = Pace(float(work.sum()), started=0.0)
    last = max(free)
    for count, (end, i) in enumerate(sorted(ends), start=1):
        now[0] = end
        pace.add(float(work[i]))
        if len(ends) / 4 <= count <= 0.9 * len(ends):
            assert pace.left_s == pytest.approx(last - end, rel=0.2)


def test_nothing_is_said_before_there_is_something_to_tell_it_by(monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 5.0)
    pace = Pace(10.0, started=5.0)
    assert (pace.rate, pace.left_s) == (None, None)
    pace.add(1)
    assert pace.left_s is None  # no time has passed
    monkeypatch.setattr(module.time, "monotonic", lambda: 5.01)
    pace.add(1)
    assert pace.left_s is None  # two units that came together
    monkeypatch.setattr(module.time, "monotonic", lambda: 7.0)
    assert pace.left_s == pytest.approx(8 / (1 / 2.0))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (90061, "25 h 01 min")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
