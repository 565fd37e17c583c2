"""A child process for work that native code may crash or hang: it may die, the caller may not.

The child runs one function, call after call, which pays for its imports once. A call that outlives its time limit is
killed with its process; the next call starts another. The child is a plain interpreter at the other end of a pipe:
``multiprocessing``, and Pebble's pools on it, would import the caller's main module (a job's script, Ray's worker) in
the child again, and wait for the time limit where a library ends the process with exit code 0.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

_PARENT_CHECK_S = 1.0
_START_LIMIT_S = 120.0
_END_LIMIT_S = 5.0
_MAX_ANSWER_BYTES = 2**26
_INPUT, _ERRORS = 0, 2


class ChildCrashed(Exception):
    """The child process died in a call; the text says by what."""


class ChildTimedOut(Exception):
    """The call took longer than its limit, and its process was ended."""


class Child:
    """A process that serves calls of one function.

    Args:
        function: ``module:function``, from one argument to a JSON-ready value. Arguments travel by pickle, answers as
            JSON: a file that takes over the child's decoder cannot run code here.
        is_silent: Drop what the child prints; otherwise it goes where this process's errors go.
    """

    def __init__(self, function: str, *, is_silent: bool = False) -> None:
        self._function = function
        self._output = subprocess.DEVNULL if is_silent else _ERRORS
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def call(self, request: Any, *, timeout_s: float) -> Any:
        """Call the function in the child, starting one where there is none.

        Raises:
            ChildCrashed: If the process died.
            ChildTimedOut: If no answer came in time.
        """
        process, pipe = self._running or self._start()
        self._running = None  # whatever interrupts this call, its answer is never taken for the next call's
        try:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(request)
            answer = _receive(process, pipe, timeout_s=timeout_s)
        except BaseException:
            _end(process, pipe)
            raise
        self._running = process, pipe
        return answer

    def close(self) -> None:
        """End the child if there is one."""
        if self._running is not None:
            _end(*self._running)
        self._running = None

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", __name__, self._function]
        pipe, other_end = multiprocessing.Pipe()
        with other_end:
            process = subprocess.Popen(  # noqa: S603 (this interpreter)
                command, stdin=other_end.fileno(), stdout=self._output, stderr=self._output, env=environment
            )
        try:
            _receive(process, pipe, timeout_s=_START_LIMIT_S)
        except BaseException:
            _end(process, pipe)
            raise
        return process, pipe


def _receive(process: subprocess.Popen[bytes], pipe: Connection, *, timeout_s: float) -> Any:
    """Wait for the next answer that comes out of the pipe."""
    if not pipe.poll(timeout_s):
        raise ChildTimedOut(f"it took more than {timeout_s:g} s")
    try:
        return json.loads(pipe.recv_bytes(_MAX_ANSWER_BYTES))
    except (EOFError, ConnectionError):
        raise ChildCrashed(_reason(process.wait())) from None
    except (OSError, ValueError, RecursionError) as error:  # a file that took over the child wrote it
        raise ChildCrashed(f"its answer is not JSON: {type(error).__name__}") from None


def _reason(code: int) -> str:
    """Say what ended a process."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a dead disk cannot end yet
        process.wait(_END_LIMIT_S)
    pipe.close()


def _serve(name: str) -> None:
    """Answer calls until the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, which ends this process
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    module, _, function = name.partition(":")
    work = getattr(importlib.import_module(module), function)
    with Connection(os.dup(_INPUT)) as pipe, contextlib.suppress(EOFError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), _INPUT)  # a process that the work starts does not hold the pipe
        answer = "ready"
        while True:
            pipe.send_bytes(json.dumps(answer).encode())
            answer = work(pipe.recv())


def _follow_parent(parent: int) -> None:
    """End this process when its parent is gone, even while native code hangs in another thread."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    _serve(sys.argv[1])
