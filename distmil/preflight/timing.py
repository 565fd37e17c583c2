"""Time: work in threads that a slow disk cannot hold up, and a clock for trials on a busy machine."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_SCHEDULER = Path("/proc/thread-self/schedstat")
"""Of Linux: nanoseconds on a core, nanoseconds of waiting for one, and turns."""


class Worker(Protocol):
    """Answers items in one thread."""

    def __call__(self, item: Any, /, *, limit_s: float) -> Any:
        """Answer one item, in no more than ``limit_s`` seconds where that is in its power."""
        ...

    def close(self) -> None:
        """End what the worker started."""
        ...


class Calls:
    """A worker that calls a function, which has no limit of its own."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, item: Any, *, limit_s: float) -> Any:
        """Call the function."""
        return self._function(item)

    def close(self) -> None:
        """Do nothing."""


def answers_within(
    limit_s: float, items: Sequence[Item], make_worker: Callable[[], Worker], *, at_once: int = 8
) -> dict[int, Any]:
    """Answer items in threads until the time is up.

    The threads are no reason for the program to stay: one that hangs ends with it.

    Args:
        limit_s: Seconds.
        items: What to answer, the most important first.
        make_worker: Makes the worker of a thread.
        at_once: Most threads.

    Returns:
        The answers by the item's number; those that came too late are left out.

    Raises:
        Exception: What a worker raised.
    """
    until = time.monotonic() + limit_s
    todo: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        todo.put(numbered)

    def serve() -> None:
        with contextlib.closing(make_worker()) as worker:
            while (left_s := until - time.monotonic()) > 0:
                try:
                    number, item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((number, worker(item, limit_s=left_s), None))
                except Exception as error:  # noqa: BLE001 (raised in the caller's thread)
                    answers.put((number, None, error))

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=serve, daemon=True).start()
    found: dict[int, Any] = {}
    while len(found) < len(items) and (left_s := until - time.monotonic()) > 0:
        try:
            number, answer, error = answers.get(timeout=left_s)
        except queue.Empty:
            break
        if error is not None:
            raise error
        found[number] = answer
    return found


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Choose at most ``count`` items evenly over a sequence, its ends among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def idle_clock() -> float:
    """Read seconds as they would pass on an idle machine, from any start; where the system cannot tell, plain seconds.

    Only differences between two readings of one thread mean something.
    """
    try:
        waited_s = int(_SCHEDULER.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        waited_s = 0.0
    return time.perf_counter() - waited_s
