"""The inventory as tables and sentences, and as JSON."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from distmil.inventory.listing import KINDS, Item
from distmil.inventory.survey import Entry, Inventory
from distmil.pace import in_words

NOTHING = "nothing can go: something refers to every folder, or it was written in the last hour"
NOT_OURS = "not made by a job, or a link"
_OTHERS = {
    "engines": "engines of encoders and their quantised networks",
    "pretrained": "weights of pre-trained encoders",
    "synthetic": "synthetic slides",
    "mlflow.db": "MLflow's record",
    "mlflow-artifacts": "files of MLflow's record",
}
_UNITS = ("kB", "MB", "GB", "TB", "PB")
_MANY_USERS = 2
_MANY_LINES = 5
_DAY_S = 86_400.0
_ROLES = {"checkpoints": "run", "models": "bundle", "predictions": "predictions", "searches": "search"}


def size_in_words(size_bytes: float) -> str:
    """Word a size: 12 B, 3.4 MB, 120 GB."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    for unit in _UNITS:
        size_bytes /= 1000
        if size_bytes < 999.5 or unit == _UNITS[-1]:
            break
    return f"{size_bytes:.1f} {unit}" if size_bytes < 99.95 else f"{size_bytes:.0f} {unit}"


def age_in_words(seconds: float) -> str:
    """Word an age: 40 s, 12 min, 3 h 20 min, 5 days."""
    return f"{seconds / _DAY_S:.0f} days" if seconds >= 2 * _DAY_S else in_words(max(0.0, seconds))


def lines(inventory: Inventory) -> list[str]:
    """List the items by kind and size, two lines an item, and last what is never removed; none for an empty store."""
    entries = sorted(inventory.entries.values(), key=lambda e: (KINDS.index(e.item.kind), -e.item.size_bytes, e.name))
    others = sorted(inventory.others.values(), key=lambda item: -item.size_bytes)
    now_s = inventory.now_s
    found = [(e.item.kind, e.item, _slides(e), _users(e), _words(e)) for e in entries]
    found += [("never removed here", item, "", "", _OTHERS.get(item.name, NOT_OURS)) for item in others]
    width = max((len(item.name) for _, item, *_ in found), default=0)
    written = [f"{'':{width}}{'slides':>10}{'size':>9}  {'last written':<14}used by"] if found else []
    for title, group in groupby(found, key=lambda row: row[0]):
        rows = list(group)
        written.append(f"{title}: {size_in_words(sum(item.size_bytes for _, item, *_ in rows))}")
        for _, item, slides, users, words in rows:
            size = size_in_words(item.size_bytes)
            line = f"  {item.name:{width}}{slides:>8}{size:>9}  {_age(item, now_s):<14}{users}"
            written += [line.rstrip(), f"      {words}"]
    return written


def _slides(entry: Entry) -> str:
    return "" if entry.slides is None else str(entry.slides)


def _words(entry: Entry) -> str:
    done, begun = entry.item.slides or (0, 0)
    return entry.words + f"; {count(begun - done, 'slide')} unfinished" * (begun > done)


def _age(item: Item, now_s: float) -> str:
    return "" if item.written_s is None else age_in_words(now_s - item.written_s)


def _users(entry: Entry) -> str:
    """Name the users of an item: each run's name once, with what it is; "nothing" where the item may go."""
    if entry.is_unused:
        return "nothing"
    roles: dict[str, list[str]] = {}
    for name in entry.used_by:
        kind, _, short = name.partition("/")
        roles.setdefault(short, []).append(_ROLES[kind])
    if not roles and entry.is_busy and entry.item.kind not in _ROLES:
        return "in use?"
    shown = [f"{found[0]} {short}" for short, found in list(roles.items())[:_MANY_USERS]]
    more = len(roles) - len(shown)
    return ", ".join(shown) + f" and {more} more" * (more > 0)


def sentences(inventory: Inventory, command: str) -> Iterator[str]:
    """Yield what follows the tables: the total, what is half-made, and what can go by which command."""
    others = sum(item.size_bytes for item in inventory.others.values())
    if not (inventory.entries or inventory.others or inventory.temporary):
        yield "the store is empty"
        return
    yield f"total: {size_in_words(inventory.total_bytes)}, of which {size_in_words(others)} are never removed here"
    halves = [entry for entry in inventory.entries.values() if entry.is_half]
    yield from _some([_half(entry, inventory.now_s) for entry in halves])
    finished = [e for e in inventory.entries.values() if e.item.kind == "checkpoints" and is_spare(e, inventory)]
    if finished:
        size = size_in_words(sum(entry.item.size_bytes for entry in finished))
        yield (
            f"checkpoints of {count(len(finished), 'finished run')} take {size}. Their bundles do not need them, but "
            f"the same train command would begin again without them: {command} --remove {_names(finished)}"
        )
    yield unused_sentence(inventory, command)


def is_spare(entry: Entry, inventory: Inventory) -> bool:
    """Whether an item is the checkpoints of a run whose bundle is there."""
    return f"models/{entry.item.short}" in inventory.entries and not (entry.is_half or entry.used_by or entry.is_busy)


def unused_sentence(inventory: Inventory, command: str) -> str:
    """Say what nothing refers to, how much space that takes, and the command that removes it."""
    counts = []
    if inventory.unused:
        counts.append(count(len(inventory.unused), "item"))
    if inventory.temporary:
        counts.append(f"{count(len(inventory.temporary), 'temporary file')} of killed jobs")
    if not counts:
        return NOTHING
    return (
        f"nothing refers to {' and '.join(counts)}: {size_in_words(inventory.unused_bytes)}. "
        f"To remove: {command} --remove unused"
    )


def _half(entry: Entry, now_s: float) -> str:
    size, age = size_in_words(entry.item.size_bytes), _age(entry.item, now_s)
    return f"unfinished: {entry.name}, {size}, last written {age} ago: {entry.words}"


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _MANY_LINES
    return [*lines[:_MANY_LINES], *[f"... and {more} more unfinished"] * (more > 0)]


def _names(entries: Sequence[Entry]) -> str:
    return " ".join(entry.name for entry in entries[:_MANY_LINES]) + " ..." * (len(entries) > _MANY_LINES)


def count(number: int, noun: str) -> str:
    """Word a number of things."""
    return f"{number} {noun}" + "s" * (number != 1)


def to_json(inventory: Inventory) -> dict[str, Any]:
    """Return the inventory as JSON-ready values."""
    return {
        "total_bytes": inventory.total_bytes,
        "unused_bytes": inventory.unused_bytes,
        "temporary_files": len(inventory.temporary),
        "items": [
            {
                "name": entry.name,
                "what": entry.words,
                "slides": entry.slides,
                "files": len(entry.item.files),
                "size_bytes": entry.item.size_bytes,
                "written": _iso(entry.item.written_s),
                "used_by": list(entry.used_by),
                "is_unused": entry.is_unused,
                "is_busy": entry.is_busy,
                "is_half": entry.is_half,
            }
            for entry in inventory.entries.values()
        ],
        "others": {name: item.size_bytes for name, item in inventory.others.items()},
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
