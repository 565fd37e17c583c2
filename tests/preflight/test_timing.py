"""Work with a deadline, and a clock that does not count waiting for a core."""

import threading
import time

import numpy as np
import pytest

from distmil.preflight.timing import Calls, answers_within, idle_clock, spread
from tests.support.scale import cases


def test_what_hangs_is_left_out_and_costs_the_limit_only() -> None:
    never = threading.Event()

    def answer(item: int) -> int:
        if item == 3:
            never.wait(60)
        return item * item

    started = time.monotonic()
    found = answers_within(1.0, range(8), lambda: Calls(answer), at_once=4)
    assert time.monotonic() - started < 20
    never.set()
    assert 3 not in found
    assert found.items() <= {i: i * i for i in range(8)}.items()
    assert len(found) >= 4


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        answers_within(30, [1, 0], lambda: Calls(lambda item: 1 / item))
    assert answers_within(30, [], lambda: Calls(int)) == {}


def test_a_spread_keeps_the_ends_and_even_gaps() -> None:
    generator = np.random.default_rng(7)
    for _ in range(cases(100, full=3000)):
        length, count = (int(n) for n in generator.integers(1, 200, 2))
        found = spread(range(length), count)
        assert len(found) == min(length, count) == len(set(found))
        gaps = np.diff(found)
        assert len(gaps) == 0 or gaps.min() >= 1
        if count > 1:
            assert found[0] == 0
            assert found[-1] == length - 1
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_the_clock_counts_work_and_sleep() -> None:
    started, plain = idle_clock(), time.perf_counter()
    time.sleep(0.05)
    found = idle_clock() - started
    assert 0.045 <= found <= time.perf_counter() - plain + 1e-3
