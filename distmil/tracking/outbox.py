"""What a server has not taken yet, since when it does not answer, and when it is asked again. Knows no server."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

MOST_METRICS = 10_000
BATCH = 1000
RETRY_S = 30.0
# A call that takes long to fail waits longer for its next try: at most this share of the time goes into failing.
MOST_SHARE = 0.1

Row = Mapping[str, float | None]


class Point(NamedTuple):
    """One value of a metric. It keeps its time, so that sending it twice records it once."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class Backlog:
    """What waits to be sent. Metrics are kept up to a number, the oldest go first; files are not kept at all."""

    metrics: deque[Point] = field(default_factory=deque)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    """Metrics by epoch of which some may be recorded already."""
    status: str | None = None
    files: list[str] = field(default_factory=list)
    """What could not be sent and is not kept."""
    num_dropped: int = 0
    num_taken: int = 0

    def add(self, metrics: Row, *, step: int) -> None:
        """Take in the metrics of a step; what is not defined is left out."""
        time_ms = time.time_ns() // 1_000_000
        self.metrics.extend(Point(key, value, time_ms, step) for key, value in metrics.items() if value is not None)
        while len(self.metrics) > MOST_METRICS:
            self.metrics.popleft()
            self.num_dropped += 1

    def add_missing(self, recorded: set[int]) -> int:
        """Take in the rows of epochs that are neither recorded nor waiting, and return how many these are."""
        waiting = {(point.key, point.step) for point in self.metrics}
        num_added = 0
        for epoch, row in enumerate(self.rows):
            missing = {key: value for key, value in row.items() if value is not None and (key, epoch) not in waiting}
            if missing and epoch not in recorded:
                self.add(missing, step=epoch)
                num_added += 1
        self.rows = ()
        return num_added

    def batch(self) -> list[Point]:
        """Return the oldest metrics, as many as go at once."""
        return [self.metrics[i] for i in range(min(BATCH, len(self.metrics)))]

    def took(self, batch: Sequence[Point]) -> None:
        """Forget a batch, and parameters and tags with it."""
        for _ in batch:
            self.metrics.popleft()
        self.num_taken += len(batch)
        self.params.clear()
        self.tags.clear()

    def lost(self) -> list[str]:
        """Return in words what will never be sent, and forget it."""
        dropped = [counted(self.num_dropped, "metric", "metrics")] if self.num_dropped else []
        words = [*dropped, *self.files]
        self.files, self.num_dropped = [], 0
        return words

    def waiting(self) -> list[str]:
        """Return in words what waits."""
        counts = {"metric": len(self.metrics), "parameter": len(self.params), "tag": len(self.tags)}
        words = [counted(count, name, f"{name}s") for name, count in counts.items() if count]
        if self.rows:
            words.append(f"metrics of up to {counted(len(self.rows), 'epoch', 'epochs')}")
        return words + (["the end of the run"] if self.status else [])


@dataclass
class Outage:
    """Since when a server does not answer, and when it is asked again."""

    began: datetime | None = None
    retry_at_s: float = 0.0

    def fail(self, *, took_s: float) -> bool:
        """Note a failed call and how long it took, and return whether the outage begins with it."""
        self.retry_at_s = time.monotonic() + max(RETRY_S, took_s / MOST_SHARE)
        is_new = self.began is None
        self.began = self.began or datetime.now().astimezone()
        return is_new

    def may_try(self) -> bool:
        """Return whether a call is worth its time."""
        return self.began is None or time.monotonic() >= self.retry_at_s

    def end(self) -> datetime | None:
        """Note an answer, and return since when there was none."""
        began, self.began = self.began, None
        return began


def counted(number: int, one: str, more: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else more}"
