"""Work in forked children: ready at once with every import done, free to be killed, answering in JSON."""

import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import cv2

ANSWER_LIMIT_S = 300.0
_BEGUN = b"\n"  # JSON may start with it


class ForkFailed(Exception):
    """The work raised, died or did not end; the text says how."""


@dataclass(frozen=True)
class Fork:
    """A forked child at work."""

    pid: int
    pipe: int

    def wait_begun(self) -> None:
        """Return when the work has begun."""
        os.read(self.pipe, 1)

    def kill(self) -> bool:
        """Kill -9 it and return whether that was what ended it."""
        os.kill(self.pid, signal.SIGKILL)  # a child that ended by itself is still there, not yet waited for
        os.close(self.pipe)
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])

    def answer(self, *, timeout_s: float = ANSWER_LIMIT_S) -> Any:
        """Wait for the work's value. Raises: ForkFailed."""
        deadline = time.monotonic() + timeout_s
        data = b""
        while select.select([self.pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            block = os.read(self.pipe, 2**16)
            if not block:
                break
            data += block
        else:
            self.kill()
            raise ForkFailed(f"no answer after {timeout_s:g} s")
        os.close(self.pipe)
        status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(status):
            raise ForkFailed(f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
        answer = json.loads(data) if data.strip() else {"error": f"exit code {os.waitstatus_to_exitcode(status)}"}
        if "error" in answer:
            raise ForkFailed(answer["error"])
        return answer["value"]


def fork(work: Callable[..., Any], *arguments: Any, gate: tuple[int, int] | None = None) -> Fork:
    """Start work in a child.

    Args:
        work: Returns JSON-ready values.
        arguments: For the work; nothing is copied or pickled.
        gate: The ends of a pipe; the child begins when every other process has closed the second.
    """
    cv2.setNumThreads(1)  # ends its threads: a child would wait for them for ever
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: BLAS holds idle threads
        pid = os.fork()
    if pid == 0:
        _live(partial(work, *arguments), (reading, writing), gate)
    os.close(writing)
    return Fork(pid, reading)


def ask(work: Callable[..., Any], *arguments: Any, timeout_s: float = ANSWER_LIMIT_S) -> Any:
    """Do work in a child and return its value. Raises: ForkFailed."""
    return fork(work, *arguments).answer(timeout_s=timeout_s)


def _live(work: Callable[[], Any], pipe: tuple[int, int], gate: tuple[int, int] | None) -> NoReturn:
    """Be the child."""
    try:
        reading, writing = pipe
        os.close(reading)
        if gate is not None:
            os.close(gate[1])
            os.read(gate[0], 1)
        os.write(writing, _BEGUN)
        try:
            answer = {"value": work()}
        except BaseException:  # noqa: BLE001 (the parent raises it again)
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writing, "wb") as file:
            file.write(json.dumps(answer).encode())
    finally:
        os._exit(0)  # no clean-up of the parent's affairs
