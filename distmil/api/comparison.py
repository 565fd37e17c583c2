"""``distmil compare``: evaluated runs on the same slides against each other. Needs neither Ray nor torch."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distmil.api.results import open_results
from distmil.command.ending import run_command
from distmil.config.loading import load_config
from distmil.console import Console, set_up_logging
from distmil.errors import ConfigError
from distmil.evaluation.comparison import Comparison, compare, judged_results
from distmil.evaluation.slide_results import WRONG, SlideResult, rows_to_csv
from distmil.reporting.comparison_page import ComparisonPage
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store

MAX_SHOWN = 20
PAGE = "comparison.html"
_EPILOG = """Exit codes: 0 done, 1 failed, 2 bad input. The last line on stdout is JSON.

Each run is compared with the first one, on the slides that have a label. The runs must be of the same slides."""


def main(description: str | None, argv: Sequence[str] | None = None, *, program: str = "distmil compare") -> int:
    """Run the command from its command line and return the exit code.

    Args:
        description: For ``--help``.
        argv: Arguments without the program's name; default: the process's.
        program: The program's name, for ``--help``.
    """
    options = _parser(description, program).parse_intermixed_args(argv)  # keys may follow an option
    console = Console()
    set_up_logging(console)
    return run_command("compare", lambda _: _run(options, console), console)


def _parser(description: str | None, program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=description, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", metavar="RUN", nargs="+", help="folders under predictions/, and section.key=value such as storage.root"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="compare the slides of this split only")
    parser.add_argument(
        "--viewer", metavar="URL", help="the page links slides to `distmil view` here (default: http://127.0.0.1:8765/)"
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="the jobs' configuration file")
    return parser


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare, show, write; return the answer."""
    names = [word for word in options.words if "=" not in word]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"compare needs at least two different runs, got {', '.join(names) or 'none'}")
    config = load_config(options.config, [word for word in options.words if "=" in word])
    store = Store(resolve_root(config.storage.root))
    console.note(f"storage: {store.root}")
    runs = {name: _slides(name, store.root, options.split) for name in names}
    viewer = viewer_address(options.viewer or f"http://{config.view.host}:{config.view.port}/")
    normal = normal_class(runs, config.cohort.classes)
    found = compare(runs, normal=normal)
    folder = f"comparisons/{'--'.join(names)}"
    judged = {name: judged_results(results) for name, results in runs.items()}
    first = judged[names[0]].values()
    about = f"{len(first)} slides of {len({result.patient_id for result in first})} patients"
    for one in found:
        _show(one, console, about)
    files = {
        name: [{"run": one.other, "against": one.first, **row} for one in found for row in getattr(one, part)]
        for name, part in (("differences.csv", "rows"), ("changed.csv", "changed"))
    }
    store.delete(f"{folder}/{PAGE}")  # no page of other tables
    for name, rows in files.items():
        store.delete(f"{folder}/{name}")
        if rows:
            store.write(f"{folder}/{name}", rows_to_csv(rows))
    split = f", split {options.split}" if options.split else ""
    page = ComparisonPage(f"{about}{split}", found, judged, normal, viewer)
    store.write(f"{folder}/{PAGE}", page.to_html())
    console.note(f"tables: {store.path(folder)}")
    console.note(f"page: {store.path(f'{folder}/{PAGE}')}")
    return {
        "job": "compare",
        "storage": store.root,
        "slides": len(first),
        "comparisons": [asdict(one) for one in found],
        "folder": store.path(folder),
        "page": store.path(f"{folder}/{PAGE}"),
    }


def _slides(name: str, root: str, split: str | None) -> list[SlideResult]:
    """Read a run's slides. Raises: ConfigError if there is no such run, or none of its slides is of the split."""
    results = [result for result in open_results(name, root=root).slides if split in {None, result.split}]
    if not results:
        raise ConfigError(f"--split {split}: {name} has no slide of it")
    return results


def viewer_address(text: str) -> str:
    """Check the viewer's address, and take off what follows a number sign. Raises: ConfigError."""
    address = text.partition("#")[0]
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--viewer {text}: expected an address such as http://127.0.0.1:8765/")
    return address


def normal_class(runs: Mapping[str, Sequence[SlideResult]], classes: Sequence[str]) -> str:
    """Find the name of class 0: what a slide below its threshold is predicted as; else the configuration's first one.

    Raises:
        ConfigError: If no slide is predicted normal, and no label is the configuration's first class.
    """
    results = [result for results in runs.values() for result in results if result.probability is not None]
    below = {result.predicted for result in results if (result.probability or 0) < (result.threshold or 0)}
    if len(below) == 1:
        return below.pop()
    if not below and any(result.label == classes[0] for result in results):
        return classes[0]
    raise ConfigError("it is not known which class is normal; set cohort.classes as the runs had it")


def _show(one: Comparison, console: Console, about: str) -> None:
    """Show a comparison: the differences, then the slides that changed their prediction."""
    rows = [
        (row["metric"].replace("_", " "), *(_digits(row[name]) for name in ("first", "other", "difference")),
         "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}",
         "" if row["p"] is None else f"{row['p']:.3f}")
        for row in one.rows
    ]  # fmt: skip
    title = f"{one.other} against {one.first} on {about}; 95 % intervals by patient; p by DeLong, by slide"
    console.table(title, ("metric", one.first, one.other, "difference", "interval", "p"), rows)
    wrong = sum(row["now"] == WRONG for row in one.changed)
    title = f"{len(one.changed)} slides are predicted otherwise by {one.other}, {wrong} of them wrong now"
    if not one.changed:
        console.note(title)
        return
    cells = [tuple(_digits(value) for value in row.values()) for row in one.changed[:MAX_SHOWN]]
    columns = ("slide", "label", one.first, "probability", one.other, "probability", "now")
    console.table(title, columns, cells)
    if len(one.changed) > MAX_SHOWN:
        console.note(f"... and {len(one.changed) - MAX_SHOWN} more in changed.csv")


def _digits(value: Any) -> str:
    return "not defined" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
