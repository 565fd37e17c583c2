"""Something done beside other work, in a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def in_background(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run ``work`` in a thread while the block runs, and wait for its end.

    Args:
        work: Gets an event that is set when the block has ended; it must return soon after.
        name: Of the thread.
    """
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def read_ahead(make: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 1) -> Iterator[Result]:
    """Yield ``make``'s results in order, made ``ahead`` of their use in threads; errors are raised here, in order.

    Args:
        make: Should leave Python's lock free for most of its time, as reading and decoding do.
        items: What each result is made from.
        ahead: Results that are made or wait while one is in use.
    """
    made: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(ahead, thread_name_prefix="read-ahead")
    try:
        for item in items:
            made.append(threads.submit(make, item))
            if len(made) > ahead:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
