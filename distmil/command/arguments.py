"""A job's arguments: their parser with its help, and the right form of what is written in another one."""

import argparse
import difflib
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from distmil.command.ending import BAD_INPUT
from distmil.command.versions import version_text
from distmil.config.by_job import EXAMPLES, USUAL, keys_read
from distmil.config.description import WIDTH, all_fields, describe_keys, describe_shortly
from distmil.config.root import Config

_EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 bad input;\n130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
_OTHER_NAMES = {
    "c": "--config",
    **dict.fromkeys(("o", "out", "output"), "storage.root"),
    "workers": "training.num_workers",
    "learning_rate": "training.lr",
}
"""Options that other programs have."""


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are sentences, without the usage."""

    def __init__(self, job: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._job = job

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and refuse options that are not there and words that set nothing, each with the right form."""
        words = list(sys.argv[1:] if args is None else args)
        options, unknown = self.parse_known_intermixed_args(words, namespace)
        flags = [text for action in self._actions for text in action.option_strings]
        found = list(dict.fromkeys(corrections(self._job, words, options.overrides, unknown, flags)))
        if found:
            self.error("\n".join(found))
        return options

    def error(self, message: str) -> NoReturn:
        """Print a refusal and end with the code of bad input."""
        self.exit(BAD_INPUT, "".join(f"{self._job}: {line}\n" for line in message.splitlines()))


class _Print(argparse.Action):
    """An option that prints a text and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, write: Any, **arguments: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **arguments)
        self._write = write

    def __call__(self, parser: argparse.ArgumentParser, *_given: Any) -> None:
        sys.stdout.write(f"{self._write()}\n")
        parser.exit()


def job_parser(name: str, description: str | None, *, program: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser of a job; without ``program`` for its file under ``jobs/``."""
    prog = program or f"jobs/{name}.py"
    parser = _Parser(
        name,
        prog=prog,
        usage=f"{prog} [--config FILE.yaml] [section.key=value ...]",
        description="\n\n".join([description.strip() if description else "", _first_help(prog, name)]).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="configuration file, or its s3:// or gs:// URI; without it, every default"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces the file's value")
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration that the job would use, and run nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done, how much and how long; write nothing"
    )
    parser.add_argument("-h", "--help", action=_Print, write=lambda: _help(parser, name), help="print this help")
    parser.add_argument(
        "--help-all",
        action=_Print,
        write=lambda: f"Every key of every job:\n\n{describe_keys()}",
        help="print every key, those of other jobs too",
    )
    parser.add_argument(
        "--version", action=_Print, write=version_text, help="print the versions of distmil and its large libraries"
    )
    return parser


def _first_help(program: str, job: str) -> str:
    """Write an example and the usual keys."""
    command = program if program.split(maxsplit=1)[0] in {"distmil", "python"} else f"python {program}"
    keys = describe_shortly(USUAL[job])
    return f"example:\n  {command} {EXAMPLES[job]}\n\nthe usual keys, with their defaults:\n{keys}"


def _help(parser: argparse.ArgumentParser, job: str) -> str:
    """Write a job's help: an example, the usual keys, the options, and all keys that the job reads."""
    read = keys_read(job)
    unread = [section for section in Config.model_fields if not any(key.startswith(f"{section}.") for key in read)]
    parts = [
        parser.format_help(),
        f"every key that {job} reads, by section in the YAML or as overrides:\n\n{describe_keys(read)}\n",
    ]
    if unread:
        note = f"Not read by {job}: {', '.join(unread)}. --help-all prints their keys too."
        parts.append(f"{textwrap.fill(note, WIDTH)}\n")
    return "\n".join([*parts, _EXIT_CODES])


# --- what is written in another form ------------------------------------------------------------------------------


def corrections(
    job: str, words: Sequence[str], bare: Iterable[str], unknown: Iterable[str], flags: Sequence[str]
) -> Iterator[str]:
    """Yield a line for each option that is not there, and for each word that sets nothing.

    Args:
        job: Its keys are meant first.
        words: The whole command line.
        bare: Those of its words that the parser took for overrides.
        unknown: Those that it did not know.
        flags: The options that are there.
    """
    left, unknown = set(bare), set(unknown)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        following = words[position] if position < len(words) else ""
        is_cut = word.endswith("=") and following in left and _may_be_value(following)
        if word not in unknown and not is_cut and (word not in left or re.match(r"[^=]+=", word)):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        given = [word]
        if not equals and ":" in name and name.partition(":")[0] in _all_keys():  # as in YAML
            name, equals, value = name.partition(":")
        while position < len(words) and not value and _may_be_value(words[position]):
            given.append(words[position])
            value = words[position].removeprefix("=")
            position += 1
        yield f"{shlex.join(given)}: {_right_form(job, word, name.strip(), value, flags)}"


def _may_be_value(word: str) -> bool:
    """Tell whether a word may be the value of the word before it: neither an option nor an override."""
    return not re.match(r"-(?![\d.])|[^=]+=", word)


def _right_form(job: str, word: str, name: str, value: str, flags: Sequence[str]) -> str:
    """Say how a word and the value behind it are written."""
    name = name.replace("-", "_")
    shown = shlex.quote(value) if value else "VALUE"
    if not word.startswith("-") and "." in name and (kind := _file_form(name, word)):
        return kind
    if name in _OTHER_NAMES:
        known = _OTHER_NAMES[name]
        return f"write {known} {shown}" if known.startswith("--") else f"write {known}={shown}"
    if keys := keys_named(job, name):
        return f"write {' or '.join(f'{key}={shown}' for key in keys[:3])}"
    near = near_flags(word, flags) if word.startswith("-") else []
    near += [f"{key}={shown}" for key in near_keys(job, name)]
    what = "there is no such option" if word.startswith("-") else "expected section.key=value"
    if near:
        return f"{what}; did you mean {' or '.join(near[:2])}?"
    return f"{what}; settings are written section.key=value, and --help lists them"


def _file_form(name: str, word: str) -> str | None:
    """Say how the name of a file is given to a job; None for other words."""
    if word.lower().endswith((".yaml", ".yml")):
        return f"write --config {shlex.quote(word)}"
    return f"write cohort.manifest={shlex.quote(word)}" if name.lower().endswith(_TABLES) else None


def _all_keys() -> list[str]:
    return [f"{section}.{key}" for section, key, _ in all_fields()]


def keys_named(job: str, name: str) -> list[str]:
    """List the dotted keys of a name, itself dotted or not: the job's usual ones, else those it reads, else all."""
    found = [key for key in _all_keys() if name in (key, key.partition(".")[2])]
    for own in (USUAL[job], keys_read(job)):
        if mine := [key for key in found if key in own]:
            return mine
    return found


def near_flags(word: str, flags: Sequence[str]) -> list[str]:
    """List the options that are spelt nearly so."""
    return difflib.get_close_matches(word.partition("=")[0], flags, n=1, cutoff=0.75)


def near_keys(job: str, name: str) -> list[str]:
    """List the dotted keys whose name, or whose whole, is spelt nearly so; those that the job reads first."""
    read = keys_read(job)
    words = {key.partition(".")[2] for key in read} | set(read) if "." not in name else set(_all_keys())
    close = difflib.get_close_matches(name, sorted(words), n=2, cutoff=0.7)
    return list(dict.fromkeys(key for word in close for key in keys_named(job, word)))
