"""Removing items: what may go, and in which order, so that an interruption leaves nothing that looks whole."""

import difflib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from distmil.errors import ConfigError, StorageError
from distmil.inventory.listing import BUSY_S, ENCODERS, KINDS, WALKERS, Item, is_left_over
from distmil.inventory.survey import Entry, Inventory
from distmil.storage.files import FoundFile
from distmil.storage.store import RECORD_FILE, Store

UNUSED = "unused"
"""In place of a name: everything that nothing refers to."""
_ORDER = ("predictions", "searches", "checkpoints", "models", "labels", "outlines", "embeddings", "patches")
_RECORDS = {"owner.json", RECORD_FILE, "latest.json", "slides.json", "result.json"}
"""They go first. A job that works on a run finds its ``owner.json`` gone, and stops."""
_TABLES = {"slides.parquet", "slides.csv", "summary.html", "report.html", "comparison.html", "report.md", "best.yaml"}
_LAST = {("checkpoints", "run.json"), ("predictions", "question.json")}
"""Which settings a run has, and which question is answered: a folder with nothing else is one that was just begun."""
_BATCH = 256
_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """What is to be removed."""

    entries: Sequence[Entry]
    temporary: Sequence[FoundFile] = ()

    @property
    def size_bytes(self) -> int:
        """The space that it frees."""
        return sum(entry.item.size_bytes for entry in self.entries) + sum(file.size_bytes for file in self.temporary)


def plan_removal(inventory: Inventory, wanted: Sequence[str], *, is_forced: bool = False) -> Plan:
    """Choose the items of some names, in the order of their removal.

    Args:
        inventory: What there is.
        wanted: Names of items, or ``unused``.
        is_forced: Take what other items were made from, too.

    Raises:
        ConfigError: If a name is not that of an item, or the item is used, or a job may be at work on it.
    """
    chosen: dict[str, Entry] = {}
    for name in wanted:
        found = inventory.unused if name == UNUSED else [_find(inventory, name)]
        chosen |= {entry.name: entry for entry in found}
    refusals = [reason for entry in chosen.values() if (reason := _refusal(entry, chosen.keys(), is_forced, inventory))]
    if refusals:
        raise ConfigError("nothing was removed:\n  " + "\n  ".join(refusals))
    order = [*_ORDER, *(kind for kind in KINDS if kind not in _ORDER)]
    entries = sorted(chosen.values(), key=lambda entry: (order.index(entry.item.kind), entry.name))
    return Plan(entries, inventory.temporary if UNUSED in wanted else ())


def _find(inventory: Inventory, name: str) -> Entry:
    """Find an item by its name, or by its full path. Raises: ConfigError."""
    short = name.removeprefix(f"{inventory.root.partition('?')[0]}/").strip("/")
    if short in inventory.entries:
        return inventory.entries[short]
    if short.partition("/")[0] in {other.partition("/")[0] for other in inventory.others} - set(KINDS):
        raise ConfigError(f"{short} is not removed by this command, which removes only {', '.join(KINDS)}")
    close = difflib.get_close_matches(short, inventory.entries, n=1)
    close = close or [entry for entry in inventory.entries if entry.endswith(f"/{short}")]
    hint = f"did you mean {close[0]}?" if close else f"expected a name of the list, or {UNUSED}"
    raise ConfigError(f"there is no {name!r} in {inventory.root}; {hint}")


def _refusal(entry: Entry, chosen: Collection[str], is_forced: bool, inventory: Inventory) -> str | None:
    """Say why an item stays, None if it may go."""
    if entry.is_busy:
        written = entry.item.written_s or 0.0
        minutes = max(0, round((inventory.now_s - written) / 60))
        own = inventory.now_s - written < BUSY_S
        why = f"was written {minutes} min ago" if own else "belongs with folders that were written in the last hour"
        return f"{entry.name} {why}: a job may be at work on it; try again an hour after its last write"
    users = [name for name in entry.used_by if name not in chosen]
    if users and not is_forced:
        shown = ", ".join(users[:_SHOWN]) + f" and {len(users) - _SHOWN} more" * (len(users) > _SHOWN)
        return f"{entry.name} is used by {shown}; --force removes it all the same"
    return None


def remove(store: Store, plan: Plan, *, now_s: float, note: Callable[[str], object]) -> tuple[list[Item], list[str]]:
    """Delete the items of a plan one after the other, each one's records first.

    An item that was written since the inventory stays.

    Args:
        store: The store.
        plan: What goes.
        now_s: The time, in seconds since 1970.
        note: Takes the name of each item as soon as it is gone.

    Returns:
        The removed items, and the names of those that stay.

    Raises:
        StorageError: If the store cannot be written; what was deleted before is gone.
    """
    removed, left = [], []
    for entry in plan.entries:
        files = _files_now(store, entry.item)
        known = set(entry.item.files)
        if any(file not in known and not is_left_over(file, now_s) for file in files):
            left.append(entry.name)
            continue
        for names in in_order(entry.item, files):
            _delete(store, names)
        if entry.item.kind != ENCODERS:
            store.delete_if_empty(entry.name)
        removed.append(entry.item)
        note(entry.name)
    _delete(store, [file.name for file in plan.temporary])
    return removed, left


def in_order(item: Item, files: Sequence[FoundFile]) -> list[list[str]]:
    """Sort an item's files into groups that are deleted one after the other: records, tables, the rest, the claim."""
    groups: list[list[str]] = [[], [], [], [], []]
    for file in files:
        groups[_rank(item.kind, file.name[len(item.name) + 1 :])].append(file.name)
    return groups


def _rank(kind: str, inner: str) -> int:
    name = inner.rpartition("/")[2]
    if (kind, inner) in _LAST:
        return 4
    if name in _RECORDS:
        return 0
    if name.endswith(".json"):
        return 1
    return 2 if name in _TABLES else 3


def _files_now(store: Store, item: Item) -> list[FoundFile]:
    if item.kind == ENCODERS:
        return [file for file in store.walk(ENCODERS, is_deep=False) if file.name == item.name]
    return store.walk(item.name)


def _delete(store: Store, names: Sequence[str]) -> None:
    """Delete files, several at a time; an interruption waits for a batch at most."""
    with ThreadPoolExecutor(WALKERS) as pool:
        for i in range(0, len(names), _BATCH):
            list(pool.map(store.delete, names[i : i + _BATCH]))


def check_writable(store: Store) -> None:
    """Try to write into the store before anything is deleted. Raises: StorageError."""
    try:
        store.check()
    except StorageError as error:
        raise StorageError(f"nothing was removed, because this store cannot be written: {error}") from error
