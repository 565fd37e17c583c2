"""A job's messages on stderr: with rich on a terminal, as plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

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
            cells = [[str(cell) for cell in row] for row in (columns, *shown)]
            widths = [max(len(row[i]) for row in cells) for i in range(len(columns) - 1)] + [0]
            lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
            self.note("\n  ".join([f"{title}:", *(line.rstrip() for line in lines)]))
        for line in more:
            self.note(line)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
        """Show the progress of some work; yields a function to call once per finished unit."""
        if self.rich.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
            with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.rich) as bar:
                task = bar.add_task(label, total=total)
                yield lambda: bar.advance(task)
            return
        yield _PlainProgress(self, label, total, unit).advance


@dataclass
class _PlainProgress:
    """Progress as a line every few seconds, and a last line at the end."""

    console: Console
    label: str
    total: int
    unit: str
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def advance(self) -> None:
        """Count one unit."""
        self.done += 1
        now = time.monotonic()
        if self.done == self.total or now - self.said >= PLAIN_INTERVAL_S:
            self.said = now
            self.console.note(f"{self.label}: {self.done}/{self.total} {self.unit}, {now - self.started:.0f} s")


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
