"""What is wrong with a manifest, row by row, and its report: a few rows of each cause, and the count of the others."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distmil.errors import ManifestError

SHOWN = 3
"""Rows that are named for each cause."""


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong with a row."""

    line: int
    text: str
    """The fault in full, with the value."""
    column: str
    kind: str
    """The cause, which is equal for all rows that share it."""


def manifest_error(path: Path, faults: Sequence[Fault], *, unit: str, notes: Sequence[str] = ()) -> ManifestError:
    """Word all faults in one error: the first rows of each cause by line, then the counts, then the notes."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in sorted(faults):
        by_kind[fault.kind].append(fault)
    shown = sorted(fault for group in by_kind.values() for fault in group[:SHOWN])
    lines = [f"{unit} {fault.line}: {fault.text}" for fault in shown]
    lines += [f"and {len(group) - SHOWN} more: {kind}" for kind, group in by_kind.items() if len(group) > SHOWN]
    rows = len({fault.line for fault in faults})
    head = f"{path}: {rows} {unit}{'s' * (rows != 1)} cannot be used"
    return ManifestError("\n  ".join([head, *lines, *notes]))
