"""The command ``distmil``: the jobs in the order of work, the doctor, and shell completion.

Only light modules are imported here, so that the help appears at once. A job's own modules are imported when it runs.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

BAD_INPUT = 2
JOBS = {
    "tile": "Cut the slides of a manifest into patches.",
    "embed": "Turn patches into embeddings.",
    "import_features": "Take over features that CLAM, TRIDENT, STAMP, ... made.",
    "pretrain": "Pre-train an encoder on the patches of the train slides.",
    "train": "Train a network; predict and evaluate slides outside train.",
    "tune": "Search settings, and compare the best with the defaults.",
    "evaluate": "Measure a trained bundle on labelled slides.",
    "predict": "Score slides with a trained bundle, and draw their maps.",
    "export": "Write finished predictions for QuPath, ASAP and tables.",
    "view": "Show finished predictions in a browser.",
    "export_features": "Write embeddings as CLAM, TRIDENT, STAMP, ... do.",
}
"""The jobs in the order of work."""
TOOLS = {
    "compare": "Compare evaluated runs on the same slides.",
    "store": "Show what is in the store, and remove what may go.",
    "encoders": "List the encoders, and where their weights are.",
    "doctor": "Check the installation, the storage, MLflow and the cluster.",
    "completion": "Print a completion script for bash, zsh or fish.",
}
SHELLS = ("bash", "zsh", "fish")
_USAGE = "%(prog)s JOB [--config FILE.yaml] [section.key=value ...]"
_EPILOG = """`distmil JOB --help` lists a job's keys with type, bounds and default.
On a cluster: ray job submit --working-dir . -- distmil train --config FILE.yaml"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    name = name.replace("-", "_") if name.replace("-", "_") in JOBS else name
    if name in JOBS:
        cli = importlib.import_module("distmil.cli")
        return int(cli.main(name, JOBS[name], arguments[1:], program=f"{_program()} {name}"))
    if name == "doctor":
        doctor = importlib.import_module("distmil.pipeline.doctor.job")
        return int(doctor.main(TOOLS[name], arguments[1:]))
    if name == "compare":
        comparison = importlib.import_module("distmil.api.comparison")
        return int(comparison.main(TOOLS[name], arguments[1:], program=f"{_program()} {name}"))
    if name == "store":
        inventory = importlib.import_module("distmil.inventory.job")
        return int(inventory.main(TOOLS[name], arguments[1:]))
    if name == "encoders":
        table = importlib.import_module("distmil.encoders.catalog.table")
        return int(table.main(TOOLS[name], arguments[1:], program=f"{_program()} {name}"))
    if name == "completion":
        return _print_completion(arguments[1:])
    parser = _parser()
    if not name:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    if not name.startswith("-"):
        close = difflib.get_close_matches(name, [*JOBS, *TOOLS], n=1)
        hint = f"did you mean {close[0]}?" if close else f"jobs are {', '.join([*JOBS, *TOOLS])}"
        sys.stderr.write(f"distmil: there is no job {name!r}; {hint}\n")
        return BAD_INPUT
    if name == "--version":
        sys.stdout.write(f"{importlib.import_module('distmil.command.versions').version_text()}\n")
        return 0
    parser.parse_args(arguments[:1])
    return BAD_INPUT  # only an empty parser comes back


def _program() -> str:
    """Return the command as it was typed: the console script, or the package by Python."""
    return "python -m distmil" if Path(sys.argv[0]).parts[-2:] == ("distmil", "__main__.py") else "distmil"


def _parser() -> argparse.ArgumentParser:
    lines = ["jobs, in the order of work:", *(f"  {name:<16}{text}" for name, text in JOBS.items()), "", "tools:"]
    lines += [f"  {name:<16}{text}" for name, text in TOOLS.items()]
    parser = argparse.ArgumentParser(
        prog="distmil",
        usage=_USAGE,
        description="Train one network from slide labels and lesion outlines at once, on Ray.\n\n" + "\n".join(lines),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions of distmil and its large libraries")
    return parser


def _print_completion(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="distmil completion",
        description=f"{TOOLS['completion']}\nLoad it in the shell's start-up file:\n\n"
        "  bash  source <(distmil completion bash)\n"
        "  zsh   source <(distmil completion zsh)      # after compinit\n"
        "  fish  distmil completion fish | source",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    sys.stdout.write(importlib.import_module("distmil.completion").script(shell, JOBS, TOOLS))
    return 0


if __name__ == "__main__":
    sys.exit(run())
