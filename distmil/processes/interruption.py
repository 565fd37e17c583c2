"""Ctrl-C, SIGTERM and SIGHUP: a job reports one at once, ends its processes, and exits by the signal's code."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from distmil.processes.tree import adopt_orphans, descendants

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_S = 1.0
"""Signals within this time are one: a terminal and a job's manager may both send theirs."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the job to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class _Hold:
    """Blocks of the main thread that are not to be left half done, and the signal that came meanwhile."""

    depth: int = 0
    number: int | None = None


_hold = _Hold()


class Interruption:
    """Turns signals into ``Interrupted``, in the main thread of a process that runs one job.

    Libraries put handlers of their own in the place of these, so that ``install`` is called again after them. A second
    signal ends the process at once, with all that it started.
    """

    def __init__(self, sentence: str) -> None:
        self._line = f"\n{sentence}\n".encode()
        self._numbers: list[signal.Signals] | None = None
        self._first_s: float | None = None
        self.number: int | None = None
        """The signal that came; libraries raise another KeyboardInterrupt in the place of ``Interrupted``."""

    def install(self) -> None:
        """Take the signals, but for those that the job's starter had it ignore."""
        if threading.current_thread() is not threading.main_thread():
            return
        if self._numbers is None:
            adopt_orphans()
            self._numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        for number in self._numbers:
            signal.signal(number, self._handle)

    def remove(self) -> None:
        """Give the signals back, or take no more of them where one has ended the job."""
        if self._numbers is None or threading.current_thread() is not threading.main_thread():
            return
        for number in self._numbers:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual if self.number is None else signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Write the sentence at once by a plain write: the interrupted code may hold locks, and time may be short."""
        now = time.monotonic()
        if self._first_s is None:
            self._first_s, self.number = now, number
            os.write(2, self._line)
            if _hold.depth:
                _hold.number = number
                return
            raise Interrupted(number)
        if now - self._first_s > SAME_S:
            end_at_once(number)


@contextmanager
def interruption_held() -> Iterator[None]:
    """Let a block run to its end before an interruption is raised, which is announced at once all the same.

    A block that is left half done would do harm: SQLAlchemy, interrupted in a commit, leaves an SQLite file locked. A
    second signal ends the process at once here, too. In other threads the block just runs.

    Raises:
        Interrupted: After the block, if a signal came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _hold.depth += 1
    try:
        yield
    finally:
        _hold.depth -= 1
        if _hold.depth == 0 and (number := _hold.number) is not None:
            _hold.number = None
            raise Interrupted(number)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back while a block runs in this thread; they come afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_code(number: int) -> int:
    """Compute the exit code that shells give to a process which a signal ended."""
    return 128 + number


def end_at_once(number: int) -> None:
    """End this process and everything that it started, without a further word."""
    for process in descendants([os.getpid()]):
        if process.pid != os.getpid() and process.is_alive:
            os.kill(process.pid, signal.SIGKILL)
    os._exit(exit_code(number))
