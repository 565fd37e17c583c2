"""``distmil doctor``: run all checks, a few at a time, and report each in a line with what to do.

This module needs nothing but the standard library, so that it runs where every other library is broken.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from distmil.pipeline.doctor import libraries
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Check, Finding
from distmil.processes.interruption import Interruption, exit_code
from distmil.processes.tree import end_descendants

MAX_CHILDREN = 4
PATIENCE_S = 0.5
CONNECT_LIMIT_S = 5.0
_HERE = "distmil.pipeline.doctor"
SETTINGS = Check("configuration", f"{_HERE}.services:read_settings", 90, "see the libraries above")
STORE = Check("storage", f"{_HERE}.services:check_store", 120)
RECORD = Check("MLflow", f"{_HERE}.record:check_record", 60)
GPUS = Check("GPUs", f"{_HERE}.libraries:check_gpus", 120)
CLUSTER = Check("cluster", f"{_HERE}.cluster:check_cluster", 240, "look at `ray status` and at the head's logs")
SMALL = Check("libraries", f"{_HERE}.libraries:check_small", 90)
OPENSLIDE = Check("openslide", f"{_HERE}.libraries:check_openslide", 60, libraries.OPENSLIDE_ADVICE)
PYTHON = Check("Python", f"{_HERE}.machine:check_machine", 30)
DISKS = Check("disks", f"{_HERE}.machine:check_disks", 60, "is a network disk silent?")
OPTIONAL = Check("optional", f"{_HERE}.libraries:check_optional", 90)


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Run the doctor from its command line and return the exit code: 0, or 1 if a check failed."""
    options = _parser(description).parse_args(argv)
    interruption = Interruption("doctor: interrupted")
    interruption.install()
    executor = ThreadPoolExecutor(MAX_CHILDREN)
    found: list[Finding] = []
    settings: dict[str, Any] = {}
    try:
        for finding in _examine(options, executor, settings):
            found.append(finding)
            _report(finding)
    except KeyboardInterrupt:
        return exit_code(interruption.number or signal.SIGINT)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        end_descendants(patience_s=PATIENCE_S)  # such as of a local Ray whose check was ended
        interruption.remove()
    counts = {level: sum(finding.level == level for finding in found) for level in (OK, WARNING, FAILED)}
    summary = f"doctor: {counts[OK]} ok, {counts[WARNING]} warning, {counts[FAILED]} FAILED"
    sys.stderr.write(f"{summary}\nnext: {next_step(options.config, options.overrides, num_failed=counts[FAILED])}\n")
    checks = [vars(finding) for finding in found]
    sys.stdout.write(json.dumps({"job": "doctor", "storage": settings.get("root"), **counts, "checks": checks}) + "\n")
    sys.stdout.flush()
    return 1 if counts[FAILED] else 0


def next_step(config: str | None, overrides: Sequence[str], *, num_failed: int) -> str:
    """Word what to do after the checks.

    Args:
        config: The configuration file that was checked, if one was.
        overrides: The keys that were set.
        num_failed: Number of checks that failed.
    """
    if num_failed:
        return "mend what FAILED, and run the doctor again"
    given = [*(["--config", config] if config else []), *overrides]
    has_manifest = config or any(text.startswith(("cohort.manifest=", "cohort.synthetic=")) for text in overrides)
    return "tile: " + shlex.join(["distmil", "tile", *([] if has_manifest else ["cohort.manifest=SLIDES.csv"]), *given])


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distmil doctor",
        description=f"{description}\nEach check is reported in a line: ok, warning or FAILED.",
        epilog="Exit codes: 0 no check failed, 1 a check failed, 2 bad arguments.\n"
        "The last line on stdout is JSON.\n\n"
        "If RAY_ADDRESS is set, every node of that cluster is checked. On a cluster:\n"
        "  ray job submit --working-dir . -- distmil doctor --config FILE.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="the jobs' configuration file")
    parser.add_argument("--ray", action="store_true", help="also start a local Ray where RAY_ADDRESS is not set")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces the file's value")
    return parser


def _examine(options: argparse.Namespace, executor: ThreadPoolExecutor, settings: dict[str, Any]) -> Iterator[Finding]:
    """Yield every finding, in a fixed order, as soon as it is there; fill in the settings."""

    def start(check: Check, **arguments: Any) -> Future[list[Finding]]:
        return executor.submit(check.run, **arguments)

    reading = executor.submit(SETTINGS.call, path=options.config, overrides=options.overrides)
    running = [start(PYTHON)]
    for name in libraries.LARGE:
        check = Check(name, f"{_HERE}.libraries:check_library", 120, libraries.install_advice(name))
        running.append(start(check, distribution=name))
    running += [start(OPENSLIDE), start(SMALL)]
    value, failures = reading.result()
    settings |= value or {"error": failures[0].text}
    root, address = settings.get("root"), os.environ.get("RAY_ADDRESS", "")
    running.append(start(OPTIONAL, needed=settings.get("needed", {})))
    running.append(start(GPUS, use_gpu=settings.get("use_gpu"), has_cluster=bool(address)))
    services = []
    if root is not None:
        services.append(start(STORE, root=root, access=settings["access"]))
        services.append(start(RECORD, uri=settings["uri"], root=root))
    silent = check_address(address)
    if silent is None and (address or options.ray):
        services.append(start(CLUSTER, root=root))
    running.append(start(DISKS, root=root))
    for future in running:
        yield from future.result()
    yield from _configuration(options, settings["error"])
    for future in services:
        yield from future.result()
    if silent is not None:
        yield silent
    elif not (address or options.ray):
        yield Finding(OK, "cluster", "not checked: RAY_ADDRESS is not set; --ray tries a local Ray")


def _configuration(options: argparse.Namespace, error: str) -> Iterator[Finding]:
    """Report the configuration; without it there is no storage root to check."""
    if not error:
        yield Finding(OK, "configuration", " ".join([options.config or "defaults", *options.overrides]))
    for line in error.splitlines():
        yield Finding(FAILED, "configuration", line, "correct it; the storage and MLflow were not checked")


def check_address(address: str) -> Finding | None:
    """Return a finding if nothing listens at a Ray address; Ray itself would wait for long."""
    host, _, port = address.rpartition("://")[2].partition("?")[0].rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_LIMIT_S).close()
    except OSError as error:
        advice = "start the cluster, or correct RAY_ADDRESS (unset: a local Ray for each job)"
        return Finding(FAILED, "cluster", f"RAY_ADDRESS = {address!r}: {error.strerror or error}", advice)
    return None


def _report(finding: Finding) -> None:
    """Write a finding to stderr."""
    is_terminal = sys.stderr.isatty()
    width = max(40, shutil.get_terminal_size().columns) if is_terminal else None
    colour = is_terminal and not os.environ.get("NO_COLOR")
    sys.stderr.write(finding.lines(width, has_colour=colour) + "\n")
    sys.stderr.flush()
