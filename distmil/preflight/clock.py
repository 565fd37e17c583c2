"""A clock for trials on a busy machine: it stands still while its thread waits for a core."""

import time
from pathlib import Path

_SCHEDULER = Path("/proc/thread-self/schedstat")
"""Of Linux: nanoseconds on a core, nanoseconds of waiting for one, and turns."""


def idle_clock() -> float:
    """Read seconds as they would pass on an idle machine, from any start; where the system cannot tell, plain seconds.

    Only differences between two readings of one thread mean something.
    """
    try:
        waited_s = int(_SCHEDULER.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        waited_s = 0.0
    return time.perf_counter() - waited_s
