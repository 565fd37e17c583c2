"""How many bytes a job will write, against the free space of the storage root's disk."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from distmil.errors import ConfigError
from distmil.preflight.timing import Calls, answers_within

LIMIT_S = 2.0
SURE_SHARE = 0.5
"""Of the estimate: so much will be written whatever the slides that nobody looked at hold."""
TIGHT_SHARE = 1.25


def free_bytes(root: str) -> int | None:
    """Measure the free space of a local root's disk; None for an object store, or a disk that does not answer soon."""
    if "://" in root:
        return None

    def look(folder: Path) -> int | None:
        there = next((path for path in (folder, *folder.parents) if path.exists()), None)
        return None if there is None else shutil.disk_usage(there).free

    return answers_within(LIMIT_S, [Path(root)], lambda: Calls(look)).get(0)


def check_disk(needed: Mapping[str, float], free: int | None, root: str) -> list[str]:
    """Compare what will be written with what is free.

    Args:
        needed: Bytes by what they hold.
        free: Bytes, None where that is not known.
        root: The storage root.

    Returns:
        A note where the disk will be nearly full.

    Raises:
        ConfigError: If it surely does not fit.
    """
    total = sum(needed.values())
    if free is None or total * TIGHT_SHARE <= free:
        return []
    parts = ", ".join(f"{name} {in_bytes(amount)}" for name, amount in needed.items() if amount)
    text = f"about {in_bytes(total)} will be written ({parts}), {in_bytes(free)} are free in {root}"
    if total * SURE_SHARE > free:
        raise ConfigError(
            f"storage.root: {text}; free some space, choose another storage.root, or write less: "
            "tiling.store=coords, a larger tiling.mpp, a lower tiling.jpeg_quality or fewer slides"
        )
    return [f"note: {text}, which is tight"]


def in_bytes(amount: float) -> str:
    """Word a number of bytes for people: 12 kB, 3.4 MB, 120 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.0f} TB" if amount >= 10 else f"{amount:.1f} TB"
