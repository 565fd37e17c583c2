"""What a job says: every word as it was given, nothing lost, nothing on stdout."""

import io
import logging
import time

import pytest
from rich.console import Console as RichConsole

from distmil import pace as pace_module
from distmil.console import Console, set_up_logging


def make(*, terminal, width=60):
    stream = io.StringIO()
    rich = RichConsole(
        file=stream, force_terminal=terminal, width=width, soft_wrap=True, highlight=False, color_system=None
    )
    return Console(rich), stream


@pytest.fixture
def calm_logging():
    """Put logging back as it was."""
    root = logging.getLogger()
    names = ("distmil", "ray", "mlflow", "alembic", "httpx")
    handlers, level, levels = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(old)


ODD = ["slide [bold]x[/bold]", "a:smile:b :x:", "C:\\data\\[1]\\", "100 % [/]", "x" * 300, "Größe ½"]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_is_said_as_it_is(text, terminal):
    console, stream = make(terminal=terminal)
    console.note(text)
    assert stream.getvalue() == text + "\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_says_every_cell_and_counts_what_it_leaves_out(terminal):
    console, stream = make(terminal=terminal, width=200)
    rows = [(f"slide-{i:03d}", i, "[red]:x: why") for i in range(55)]
    console.table("bad slides", ["slide", "count", "reason"], rows)
    text = stream.getvalue()
    assert "bad slides" in text
    assert text.count("[red]:x: why") == 40
    assert "slide-039" in text
    assert "slide-040" not in text
    assert "... and 15 more" in text


def test_columns_line_up_where_there_is_no_terminal():
    console, stream = make(terminal=False)
    console.table("t", ["name", "n", "why"], [("a", 1, "x"), ("long name", 22, "y")])
    lines = stream.getvalue().splitlines()
    assert {line.index(end) for line, end in zip(lines[1:], ("why", "x", "y"), strict=True)} == {17}


def test_plain_progress_says_the_end_and_not_every_step():
    console, stream = make(terminal=False)
    with console.progress("tile", 100, "slides") as advance:
        for _ in range(100):
            advance()
    assert stream.getvalue().startswith("tile: 100/100 slides, 0 s, ")
    assert stream.getvalue().count("\n") == 1


def test_plain_progress_says_something_every_few_seconds(monkeypatch):
    now = [time.monotonic()]
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now[0])
    console, stream = make(terminal=False)
    with console.progress("tile", 20, "slides") as advance:
        for _ in range(10):
            now[0] += 2
            advance()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "tile: 3/20 slides, 6 s, 30.0 slides/min, about 34 s left",
        "tile: 6/20 slides, 12 s, 30.0 slides/min, about 28 s left",
        "tile: 9/20 slides, 18 s, 30.0 slides/min, about 22 s left",
    ]


def test_progress_counts_the_work_of_units_that_are_not_alike(monkeypatch):
    """9 small units and a large one: after the small ones, most is left."""
    now = [time.monotonic()]
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now[0])
    console, stream = make(terminal=False)
    with console.progress("embed", 10, "shards", work=1000, work_unit="patches") as advance:
        now[0] += 30  # workers start
        for _ in range(9):
            advance(10)
            now[0] += 1
        advance(910)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "embed: 1/10 shards, 30 s"
    assert lines[1] == "embed: 6/10 shards, 35 s, 10 patches/s, about 2 min left"
    assert lines[-1] == "embed: 10/10 shards, 39 s, 26 patches/s"


def test_progress_shows_where_it_is_on_a_terminal():
    console, stream = make(terminal=True, width=120)
    with console.progress("tile", 3, "slides") as advance:
        for _ in range(3):
            advance()
    assert "3/3" in stream.getvalue()


def test_nothing_goes_to_stdout(calm_logging, capsys):
    console = Console()
    set_up_logging(console)
    console.note("a note")
    logging.getLogger("distmil.tiling.tiler").info("a decision")
    logging.getLogger("distmil.tiling.tiler").debug("a detail")
    logging.getLogger("other").info("noise")
    logging.getLogger("other").warning("a warning")
    logging.getLogger("ray.data").warning("ray noise")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["a note", "a decision", "a warning"]
