"""Things made one ahead: in order, at most two at a time, beside the work on the one before."""

import threading
import time

import pytest

from distmil.processes.background import read_ahead


def test_everything_comes_in_order_and_never_more_than_two_are_held():
    held, most = set(), 0

    def make(value):
        nonlocal most
        held.add(value)
        most = max(most, len(held))
        return value

    for value in read_ahead(make, range(50)):
        time.sleep(0.001)
        held.discard(value)
        assert held <= {value + 1}
    assert most == 2
    assert list(read_ahead(make, [])) == []


def test_the_next_is_made_while_the_one_before_is_in_use():
    started = [threading.Event() for _ in range(4)]

    def make(value):
        started[value].set()
        return value

    for value in read_ahead(make, range(4)):
        if value < 3:
            assert started[value + 1].wait(5)


def test_a_failure_comes_in_its_place():
    def make(value):
        return 1 / (2 - value)

    made = read_ahead(make, range(4))
    assert [next(made), next(made)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_left_early_it_ends_its_thread():
    made = read_ahead(lambda value: value, range(9))
    next(made)
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
