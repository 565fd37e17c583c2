"""How fast work goes on, and how long the rest will take."""

import time
from dataclasses import dataclass, field

LEAST_S = 1.0
"""What was done in less after the first unit came in the same moment as that, and tells no rate."""


@dataclass
class Pace:
    """The pace of some work, from its first finished unit on: starting workers takes seconds that do not come again."""

    total: float
    """Amount of the whole work."""
    started: float = field(default_factory=time.monotonic)
    done: float = 0.0
    _first: tuple[float, float] | None = None
    """When the first unit was done, and the amount of work until then."""

    def add(self, amount: float) -> None:
        """Count some work as done."""
        self.done += amount
        if self._first is None:
            self._first = time.monotonic(), self.done

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float | None:
        """Work per second: of the whole when all is done; None where there is nothing to tell it by."""
        if self._first is None:
            return None
        since, before = self._first if self.done < self.total else (self.started, 0.0)
        seconds = time.monotonic() - since
        is_told_by_enough = seconds >= LEAST_S or (self.done >= self.total and seconds > 0)
        return (self.done - before) / seconds if is_told_by_enough and self.done > before else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take; None where there is nothing to tell it by."""
        rate = self.rate
        return max(0.0, self.total - self.done) / rate if rate else None


def in_words(seconds: float) -> str:
    """Word a duration for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
