"""Something done beside other work, in a thread of its own."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


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


def one_ahead(make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """Make one thing after the other in a thread, each while the one before is in use: never more than two are held.

    What ``make`` raises is raised where its thing would have come.

    Args:
        make: Should leave Python's lock free for most of its time, as decoding does.
        given: What each thing is made from.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        coming: Future[Made] | None = None
        for value in given:
            following = thread.submit(make, value)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
