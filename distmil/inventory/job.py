"""``distmil store``: show what is in the store, and remove what may go. Needs neither Ray nor torch."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distmil.command.ending import run_command
from distmil.config.loading import load_config
from distmil.console import Console, set_up_logging
from distmil.errors import ConfigError
from distmil.inventory.removal import Plan, check_writable, plan_removal, remove
from distmil.inventory.survey import Inventory, survey
from distmil.inventory.wording import NOTHING, count, lines, sentences, size_in_words, to_json
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store

_EPILOG = """Exit codes: 0 done, 1 failed, 2 bad input. The last line on stdout is JSON.

Names are those of the list, such as patches/9c1760219812. Only what distmil makes is ever removed: slides, MLflow's
record and your own files stay. What was written in the last hour stays too, for a job may be at work on it."""


def main(description: str | None, argv: Sequence[str] | None = None, *, program: str = "distmil store") -> int:
    """Run the command from its command line and return the exit code.

    Args:
        description: For ``--help``.
        argv: Arguments without the program's name; default: the process's.
        program: The program's name, for ``--help`` and for the commands that are proposed.
    """
    options = _parser(description, program).parse_args(argv)
    console = Console()
    set_up_logging(console)
    return run_command("store", lambda _: _run(options, console, program), console)


def _parser(description: str | None, program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=description, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="the jobs' configuration file")
    parser.add_argument(
        "--remove", metavar="NAME", nargs="+", action="extend", default=[],
        help="remove items of the list, or with `unused` everything that nothing refers to",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="remove what is used, too")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as storage.root=/data/distmil")
    return parser


def _run(options: argparse.Namespace, console: Console, program: str) -> dict[str, Any]:
    """Show the store, or remove from it; return the answer."""
    wanted = [word for word in options.remove if "=" not in word]  # an override may follow the names
    overrides = [*options.overrides, *(word for word in options.remove if "=" in word)]
    if options.remove and not wanted:
        raise ConfigError("--remove needs a name of the list, or unused")
    config = load_config(options.config, overrides)
    store = Store(resolve_root(config.storage.root))
    console.note(f"storage: {store.root}")
    if store.is_local and not Path(store.root).is_dir():
        raise ConfigError(f"there is no folder {store.root}; the first job makes it, or correct storage.root")
    inventory = survey(store, config)
    answer = {"job": "store", "storage": store.root}
    if not wanted:
        given = ["--config", options.config] if options.config else []
        _show(inventory, console, shlex.join([*program.split(), *given, *overrides]))
        return answer | to_json(inventory)
    plan = plan_removal(inventory, wanted, is_forced=options.force)
    return answer | _remove(store, plan, console, is_agreed=options.yes)


def _show(inventory: Inventory, console: Console, command: str) -> None:
    for line in (*lines(inventory), *sentences(inventory, command)):
        console.note(line)


def _remove(store: Store, plan: Plan, console: Console, *, is_agreed: bool) -> dict[str, Any]:
    """Say what goes, ask, and remove it."""
    shown = [f"  {entry.name}, {size_in_words(entry.item.size_bytes)}: {entry.words}" for entry in plan.entries]
    if plan.temporary:
        shown.append(f"  {count(len(plan.temporary), 'temporary file')} of killed jobs")
    if not shown:
        console.note(NOTHING)
        return {"removed": [], "freed_bytes": 0, "left": []}
    size = size_in_words(plan.size_bytes)
    console.note("\n".join(["to remove:", *shown, f"this frees {size}"]))
    check_writable(store)
    if not (is_agreed or _is_agreed()):
        console.note("nothing was removed")
        return {"removed": [], "freed_bytes": 0, "left": []}
    removed, left = remove(store, plan, now_s=time.time(), note=lambda name: console.note(f"removed {name}"))
    for name in left:
        console.note(f"{name} was written meanwhile, and stays")
    freed = sum(item.size_bytes for item in removed) + sum(file.size_bytes for file in plan.temporary)
    console.note(f"freed {size_in_words(freed)}")
    return {"removed": [item.name for item in removed], "freed_bytes": freed, "left": left}


def _is_agreed() -> bool:
    """Ask on the terminal. Raises: ConfigError if there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("nothing was removed: add --yes, for there is no terminal to ask on")
    sys.stderr.write("remove? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
