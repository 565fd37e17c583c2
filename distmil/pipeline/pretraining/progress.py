"""The progress of a pre-training on the terminal."""

from dataclasses import dataclass, field

from distmil.console import describe
from distmil.errors import StorageError
from distmil.pace import Pace
from distmil.pipeline.job import Job
from distmil.pretraining.checkpoints import read_progress
from distmil.pretraining.history import History, Row
from distmil.pretraining.plan import Plan
from distmil.pretraining.probe import collapse_in_words


@dataclass
class Progress:
    """Shows the epochs of a run, and the steps of a long epoch, by its checkpoints."""

    job: Job
    run: str
    plan: Plan
    rows_shown: int
    pace: Pace
    _steps: int = field(init=False)
    _next_step: int = field(init=False)

    def __post_init__(self) -> None:
        self._steps = self.plan.num_steps - round(self.pace.total)
        self._next_step = self._steps + self._tenth

    @property
    def _tenth(self) -> int:
        return max(1, self.plan.num_steps // 10)

    def __call__(self, *, is_last: bool) -> None:
        """Show what is new; about ten of many epochs, and every collapse."""
        found = self._read()
        if found is None:
            return
        history, steps = found
        self.pace.add(steps - self._steps)
        self._steps = steps
        for number in range(self.rows_shown, len(history.rows)):
            self._show_row(number, history, is_last=is_last)
        if len(history.rows) == self.rows_shown and steps >= self._next_step:
            self.job.console.note(f"step {steps}/{self.plan.num_steps}" + self._pace())
            self._next_step = steps + self._tenth
        self.rows_shown = len(history.rows)

    def _read(self) -> tuple[History, int] | None:
        try:
            return read_progress(self.job.store, self.run)
        except StorageError:
            return None

    def _show_row(self, number: int, history: History, *, is_last: bool) -> None:
        epochs, row = self.plan.num_epochs, history.rows[number]
        every = max(1, epochs // 10)
        if number <= 1 or number % every == 0 or (is_last and number == len(history.rows) - 1):
            name = f"epoch {number}/{epochs}" if number else "before"
            self.job.console.note(f"{name}: {in_words(row, history.probe)}" + self._pace())
            self._next_step = self._steps + self._tenth
        if number and (collapse := collapse_in_words(row)):
            self.job.console.note(f"WARNING: epoch {number}: {collapse}")

    def _pace(self) -> str:
        found = describe(self.pace, "steps")
        return f"; {found}" if found else ""


def in_words(row: Row, probe: str) -> str:
    """Word the measures of an epoch."""
    parts = [] if row.get("loss") is None else [f"loss {row['loss']:.3f}"]
    if row["probe_auc"] is not None:
        parts.append(f"probe AUC {row['probe_auc']:.3f} ({probe})")
    return ", ".join([*parts, f"rank {row['rank']:.1f}", f"spread {row['spread']:.3f}"])


def verdict(history: History) -> str:
    """Say what the pre-training did to the probe, and what that does not say."""
    before, after = history.rows[0], history.rows[-1]
    ranks = f"effective rank {before['rank']:.1f} before, {after['rank']:.1f} after"
    first, last = before["probe_auc"], after["probe_auc"]
    if first is None or last is None:
        return f"{ranks}; there were too few labels for a probe: compare both encoders by training with each"
    words = f"probe on {history.probe} of train: AUC {first:.3f} before, {last:.3f} after; {ranks}"
    return words if last >= first else f"{words}. The probe fell: compare both encoders by training with each"
