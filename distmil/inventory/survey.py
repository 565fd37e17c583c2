"""The inventory of a store: every item in words, with its size, its age, and what uses it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distmil.config.root import Config
from distmil.inventory.listing import ENCODERS, RAY, STAGES, Item, Listing, list_store, total_size
from distmil.inventory.references import Reference, References
from distmil.inventory.settings import Made, recipe_of_config
from distmil.storage.files import FoundFile
from distmil.storage.store import Store

NOT_RECORDED = "settings not recorded"


@dataclass(frozen=True)
class Entry:
    """One item of the inventory."""

    item: Item
    words: str
    slides: int | None
    used_by: Sequence[str]
    """Names of the results that stand on it."""
    is_busy: bool
    """Whether it was written so lately, or folders of the same patches were, that a job may be at work on it."""
    is_unused: bool
    """Whether nothing refers to it, and no job may be at work on it."""
    is_half: bool = False

    @property
    def name(self) -> str:
        """The item's name."""
        return self.item.name


@dataclass(frozen=True)
class Inventory:
    """All that is under a root."""

    root: str
    now_s: float
    entries: Mapping[str, Entry]
    """By name, in the order of the tables."""
    temporary: Sequence[FoundFile]
    others: Mapping[str, Item]

    @property
    def unused(self) -> list[Entry]:
        """List what nothing refers to."""
        return [entry for entry in self.entries.values() if entry.is_unused]

    @property
    def unused_bytes(self) -> int:
        """The space that removing the unused would free."""
        return sum(entry.item.size_bytes for entry in self.unused) + total_size(self.temporary)

    @property
    def total_bytes(self) -> int:
        """The size of everything."""
        known = [entry.item for entry in self.entries.values()]
        return sum(item.size_bytes for item in (*known, *self.others.values())) + total_size(self.temporary)


def survey(store: Store, config: Config, *, now_s: float | None = None) -> Inventory:
    """Take the inventory of a store. Only names, sizes and small records are read.

    Args:
        store: The store.
        config: This job's configuration: folders that it names are known by it.
        now_s: The time, in seconds since 1970; default: now.

    Raises:
        StorageError: If the store cannot be listed or read.
    """
    now_s = time.time() if now_s is None else now_s
    listing = list_store(store, now_s=now_s)
    reader = References(store, listing)
    references = reader.read()
    made = _made(references, config)
    parents = _parents(reader, made)
    uses = _uses(listing, references, parents)
    reachable = {name: _reach(name, uses) for name in references if not name.startswith("reports/")}
    kept = _kept(listing, parents, now_s)
    entries = {}
    for name, item in listing.items.items():
        used_by = [root for root, found in reachable.items() if name in found and root != name]
        used_by += _users_of_ray(reader, item)
        reference = references.get(name)
        entries[name] = Entry(
            item, _words(item, reference, made, parents), _slides(item, reference), used_by,
            is_busy=item.is_busy(now_s) or name in kept, is_unused=not (reference or used_by or name in kept),
            is_half=reference is not None and reference.is_half,
        )  # fmt: skip
    return Inventory(store.root, now_s, entries, listing.temporary, listing.others)


def _made(references: Mapping[str, Reference], config: Config) -> dict[str, Made]:
    """Word the folders that known settings name; those of runs win over those of this job."""
    recipes = [reference.recipe for reference in references.values() if reference.recipe]
    made: dict[str, Made] = {}
    for recipe in (recipe_of_config(config), recipe_of_config(Config()), *reversed(recipes)):
        made |= recipe.outdated() | recipe.folders()
    return made


def _parents(reader: References, made: Mapping[str, Made]) -> dict[str, str | None]:
    """Find the patches that every folder of a later stage was made from."""
    later = reader.listing.of(*STAGES[1:])
    return {item.name: made[item.name].parent if item.name in made else reader.parent_of(item) for item in later}


def _uses(
    listing: Listing, references: Mapping[str, Reference], parents: Mapping[str, str | None]
) -> dict[str, frozenset[str]]:
    """List what every item was made from."""
    stages = frozenset(item.name for item in listing.of(*STAGES, ENCODERS))
    uses = {name: frozenset({parent}) for name, parent in parents.items() if parent is not None}
    for name, reference in references.items():
        found = stages if reference.is_unknown else reference.uses
        if reference.lacks_encoder and reference.recipe is not None:
            patches = reference.recipe.folders().keys()
            found |= {item.name for item in listing.of("embeddings") if parents[item.name] in {None, *patches}}
            found |= {item.name for item in listing.of(ENCODERS)}
        uses[name] = found
    return uses


def _reach(root: str, uses: Mapping[str, frozenset[str]]) -> set[str]:
    """Follow what an item was made from to the end."""
    found, todo = {root}, [root]
    while todo:
        new = uses.get(todo.pop(), frozenset()) - found
        found |= new
        todo += new
    return found


def _kept(listing: Listing, parents: Mapping[str, str | None], now_s: float) -> set[str]:
    """List the folders that a job may be at work on: lately written ones, and those of the same patches.

    A job reads folders for hours before its run names them. Encoders are kept while anything is embedded.
    """
    busy = [item.name for item in listing.of(*STAGES, ENCODERS) if item.is_busy(now_s)]
    at_work = {None if name.startswith(ENCODERS) else parents.get(name, name) for name in busy}
    related = {item.name for item in listing.of(*STAGES) if parents.get(item.name, item.name) in at_work}
    if None in at_work:
        related |= {item.name for item in listing.of(*STAGES)}
    if at_work:
        related |= {item.name for item in listing.of(ENCODERS)}
    return related | {item.name for item in listing.of(*RAY) if item.is_busy(now_s)}


def _users_of_ray(reader: References, item: Item) -> list[str]:
    """Name the run or search that still needs what Ray keeps of it."""
    items = reader.listing.items
    if item.kind == "ray-train":
        run = items.get(f"checkpoints/{item.short}")
        return [run.name] if run is not None and not reader.is_finished(run) else []
    search = items.get(f"searches/{item.short}") if item.kind == "ray-tune" else None
    return [search.name] if search is not None and reader.found[search.name].is_half else []


def _words(item: Item, reference: Reference | None, made: Mapping[str, Made], parents: Mapping[str, str | None]) -> str:
    if reference is not None:
        return reference.words
    if item.kind == ENCODERS:
        return f"weights of {item.short.partition('-')[0]}"
    if item.kind in RAY:
        return "what Ray noted of " + ("a run" if item.kind == "ray-train" else "a search")
    if item.name in made:
        return made[item.name].words
    parent = parents.get(item.name)
    return f"{item.kind} of {parent}, {NOT_RECORDED}" if parent else f"{item.kind}, {NOT_RECORDED}"


def _slides(item: Item, reference: Reference | None) -> int | None:
    if reference is not None:
        return reference.slides
    return item.slides[0] if item.slides else None
