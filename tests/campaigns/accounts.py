"""What a campaign counted and what it found wrong, and the line that says so."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PROGRESS_S = 20.0
_SHOWN = 20


@dataclass
class Account:
    """The account of one campaign."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    """What happened how often."""
    measured: dict[str, float] = field(default_factory=dict)
    """Numbers that are no counts, named with their unit."""
    failures: list[str] = field(default_factory=list)
    """What should not have happened, each with what is needed to see it again."""
    seconds: float = 0.0
    tolerates_left_over: bool = False
    """Plans and receipts that stay beside a finished slide, and shards no record names, are counted but no failure."""
    _said: float = field(default_factory=time.monotonic)

    @property
    def has_passed(self) -> bool:
        """Return whether nothing went wrong."""
        return not self.failures

    def add(self, what: str, number: int = 1) -> None:
        """Count something."""
        self.counts[what] += number

    def fail(self, text: str) -> None:
        """Note that something went wrong, and say so at once."""
        self.failures.append(text)
        if len(self.failures) <= _SHOWN:
            print(f"{self.name}: FAILED: {text}", flush=True)

    def leave_over(self, names: Sequence[str], clue: str) -> None:
        """Count work files that the last run did not clear away."""
        self.add("roots with left-over work files", bool(names))
        if names and not self.tolerates_left_over:
            self.fail(f"left over for good: {', '.join(names[:3])}{', ...' * (len(names) > 3)} ({clue})")

    def progress(self, done: int, wanted: int) -> None:
        """Say now and then how far the campaign is."""
        if time.monotonic() - self._said > PROGRESS_S:
            self._said = time.monotonic()
            print(f"{self.name}: {done} of {wanted}; {self.summary()}", flush=True)

    def summary(self) -> str:
        """Return every number in one line."""
        counted = [f"{what} {number}" for what, number in self.counts.items()]
        measured = [f"{what} {number:.4g}" for what, number in self.measured.items()]
        return ", ".join([*counted, *measured, f"failures {len(self.failures)}"])

    def line(self) -> str:
        """Return the campaign's line."""
        word = "passed" if self.has_passed else "FAILED"
        return f"{self.name}: {word} in {self.seconds:.0f} s; {self.summary()}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "passed": self.has_passed,
            "seconds": round(self.seconds, 1),
            "counts": dict(self.counts),
            "measured": self.measured,
            "failures": self.failures,
        }
