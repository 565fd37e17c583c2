"""A job's messages on stderr: with rich on a terminal, as plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from distmil.pace import Pace, in_words

PLAIN_INTERVAL_S = 5.0
_MAX_ROWS = 40


@dataclass
class Console:
    """Notes, tables and progress of one job."""

    rich: RichConsole = field(default_factory=lambda: RichConsole(stderr=True, highlight=False, soft_wrap=True))

    def note(self, text: str) -> None:
        """Print one message."""
        self.rich.print(text, markup=False, emoji=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; the last column may be long."""
        shown = rows[:_MAX_ROWS]
        more = [f"... and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
        if self.rich.is_terminal:
            table = Table(title=title, title_justify="left")
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in shown:
                table.add_row(*(Text(str(cell)) for cell in row))
            self.rich.print(table)
        else:
            self.note(plain_table(title, columns, shown))
        for line in more:
            self.note(line)

    @contextlib.contextmanager
    def progress(
        self, label: str, total: int, unit: str, *, work: float | None = None, work_unit: str = ""
    ) -> Iterator["Advance"]:
        """Show the progress of some work, its rate and how long the rest takes.

        Args:
            label: What is done.
            total: Number of units.
            unit: Their name.
            work: Amount of work in all units, where they are not alike; default: each unit is one.
            work_unit: Its name, for the rate.

        Yields:
            A function to call once per finished unit, with its amount of work.
        """
        pace = Pace(total if work is None else work)
        named = work_unit or unit
        if not self.rich.is_terminal:
            yield _PlainProgress(self, label, total, unit, named, pace).advance
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[pace]}"), console=self.rich) as bar:
            task = bar.add_task(label, total=total, pace="")

            def advance(amount: float = 1.0) -> None:
                pace.add(amount)
                bar.update(task, advance=1, pace=describe(pace, named))

            yield advance


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table as lines of text, its columns one below the other."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns) - 1)] + [0]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n  ".join([f"{title}:", *(line.rstrip() for line in lines)])


class Advance(Protocol):
    """Counts one finished unit."""

    def __call__(self, amount: float = 1.0) -> None:
        """Count a unit of some amount of work."""


def describe(pace: Pace, unit: str) -> str:
    """Word the rate of some work, and how long the rest will take."""
    rate, left = pace.rate, pace.left_s
    if rate is None or left is None:
        return ""
    speed = (
        f"{rate:,.0f} {unit}/s"
        if rate >= 10
        else f"{rate:.1f} {unit}/s"
        if rate >= 1
        else f"{60 * rate:.1f} {unit}/min"
    )
    return speed + (f", about {in_words(left)} left" if pace.done < pace.total else "")


@dataclass
class _PlainProgress:
    """Progress as a line every few seconds, and a last line at the end."""

    console: Console
    label: str
    total: int
    unit: str
    work_unit: str
    pace: Pace
    done: int = 0
    shown: float = field(default_factory=time.monotonic)

    def advance(self, amount: float = 1.0) -> None:
        """Count one unit."""
        self.done += 1
        self.pace.add(amount)
        now = time.monotonic()
        if self.done == self.total or now - self.shown >= PLAIN_INTERVAL_S:
            self.shown = now
            found = describe(self.pace, self.work_unit)
            text = f"{self.label}: {self.done}/{self.total} {self.unit}, {in_words(self.pace.elapsed_s)}"
            self.console.note(f"{text}, {found}" if found else text)


def set_up_logging(console: Console) -> None:
    """Send distmil's own log lines to the console, and of other libraries only warnings."""
    handler: logging.Handler
    if console.rich.is_terminal:
        handler = RichHandler(console=console.rich, show_time=False, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("distmil").setLevel(logging.INFO)
    for noisy in ("ray", "mlflow", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
