"""A child process for work that native code may crash or hang: it may die, the caller may not.

The child runs one function of JSON values to JSON values, call after call, so that its imports are paid once. A call
that outlives its time limit is killed with its process; the next call starts another.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_PARENT_CHECK_S = 1.0
_START_LIMIT_S = 120.0
_END_LIMIT_S = 5.0


class ChildCrashed(Exception):
    """The child process died in a call; the text says by what."""


class ChildTimedOut(Exception):
    """The call took longer than its limit, and its process was ended."""


class Child:
    """A process that serves calls of one function.

    Args:
        function: ``module:function``, from a JSON-ready dict to a JSON-ready dict.
    """

    def __init__(self, function: str) -> None:
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Call the function in the child, starting one where there is none.

        Raises:
            ChildCrashed: If the process died.
            ChildTimedOut: If no answer came in time.
        """
        process = self._process or self._start()
        self._process = None  # whatever interrupts this call, a half-read answer is never taken for the next one's
        try:
            answer = _converse(process, json.dumps(request).encode() + b"\n", timeout_s=timeout_s)
        except BaseException:
            _end(process)
            raise
        self._process = process
        return dict(json.loads(answer))

    def close(self) -> None:
        """End the child if there is one."""
        if self._process is not None:
            _end(self._process)
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(  # noqa: S603 (this very interpreter and module)
            [sys.executable, "-m", __name__, self._function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            _converse(process, b"", timeout_s=_START_LIMIT_S)
        except BaseException:
            _end(process)
            raise
        return process


def _converse(process: subprocess.Popen[bytes], line: bytes, *, timeout_s: float) -> bytes:
    """Send a line and return the line that comes back."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    answer, output = b"", process.stdout.fileno()
    while not answer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([output], [], [], left)[0]:
            raise ChildTimedOut(f"it took more than {timeout_s:g} s")
        block = os.read(output, 2**16)
        if not block:
            raise ChildCrashed(_reason(process.wait()))
        answer += block
    return answer


def _reason(code: int) -> str:
    """Say what ended a process."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a dead disk cannot end yet
        process.wait(_END_LIMIT_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _serve(name: str) -> None:
    """Answer calls on the standard streams until the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, which ends this process
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    module, _, function = name.partition(":")
    work = getattr(importlib.import_module(module), function)
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(work(json.loads(line))).encode() + b"\n")
        answers.flush()


def _follow_parent(parent: int) -> None:
    """End this process when its parent is gone, even while native code hangs in another thread."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    _serve(sys.argv[1])
