"""The files of a store, sorted into items by where they lie. No file is read.

An item is what is made and removed as a whole: a folder of a stage, a run, a bundle, or the weights of an encoder.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from distmil.config.section import NAME_PATTERN
from distmil.storage.files import FoundFile
from distmil.storage.store import RECORD_FILE, Store

STAGES = ("patches", "embeddings", "labels", "outlines")
"""Folders that are named by the fingerprint of their settings."""
RAY = ("ray-train", "ray-tune")
ENCODERS = "encoders"
KINDS = ("models", "predictions", "comparisons", "searches", "checkpoints", *STAGES, ENCODERS, "reports", *RAY)
"""Folders under the root whose items can be removed, in the order of the tables."""
BUSY_S = 3600.0
"""What was written within this time may belong to a job that works now."""
WALKERS = 16
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_WEIGHTS = re.compile(r"[a-z0-9_]+-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"\..+\.tmp-.+-\d+-[0-9a-f]{8}")
_NAME = re.compile(NAME_PATTERN)
_NAMES = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*--[A-Za-z0-9._-]+")
"""Of the runs of a comparison."""


@dataclass(frozen=True)
class Item:
    """Files that belong together."""

    name: str
    """Relative to the root, such as ``patches/9c1760219812``."""
    files: Sequence[FoundFile]

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        return self.name.partition("/")[0]

    @property
    def short(self) -> str:
        """The name without the kind: of a run, a bundle or a search its own."""
        return self.name.partition("/")[2]

    @cached_property
    def size_bytes(self) -> int:
        """Sum over the files."""
        return sum(file.size_bytes for file in self.files)

    @cached_property
    def written_s(self) -> float | None:
        """Time of the newest file, in seconds since 1970; None without a file."""
        return max((file.written_s for file in self.files), default=None)

    @cached_property
    def inner(self) -> frozenset[str]:
        """The names of the files within the item."""
        return frozenset(file.name[len(self.name) + 1 :] for file in self.files)

    def is_busy(self, now_s: float) -> bool:
        """Whether another job may write it now."""
        return self.written_s is not None and now_s - self.written_s < BUSY_S

    @cached_property
    def slides(self) -> tuple[int, int] | None:
        """The number of finished slides and of begun ones, by file names; None where the kind says nothing of it."""
        if self.kind in ("patches", "embeddings"):
            folders = {name.partition("/")[0] for name in self.inner if "/" in name}
            return sum(f"{folder}/{RECORD_FILE}" in self.inner for folder in folders), len(folders)
        if self.kind in ("labels", "outlines"):
            done = sum(name.endswith(".json") for name in self.inner)
            return done, done
        return None


@dataclass(frozen=True)
class Listing:
    """All files under a root."""

    items: Mapping[str, Item]
    """By name."""
    temporary: Sequence[FoundFile]
    """What killed writers left of files that were not whole yet."""
    others: Mapping[str, Item]
    """What is not distmil's to remove: MLflow's record, synthetic slides, and whatever the user keeps there."""

    def of(self, *kinds: str) -> list[Item]:
        """List the items of some kinds."""
        return [item for item in self.items.values() if item.kind in kinds]


def list_store(store: Store, *, now_s: float) -> Listing:
    """List a store, several folders at a time.

    Args:
        store: The store.
        now_s: The time, in seconds since 1970.

    Raises:
        StorageError: If a folder cannot be listed.
    """
    with ThreadPoolExecutor(WALKERS) as pool:
        top = store.folders("")
        kinds = [kind for kind in KINDS if kind in top]
        inner = dict(zip(kinds, pool.map(store.folders, kinds), strict=True))
        names = [f"{kind}/{name}" for kind, found in inner.items() for name in found]
        others = [name for name in top if name not in KINDS]
        walked = dict(zip([*names, *others], pool.map(store.walk, [*names, *others]), strict=True))
        loose = list(pool.map(lambda folder: store.walk(folder, is_deep=False), ["", *kinds]))
    return _sorted(walked, [file for files in loose for file in files], now_s)


def _sorted(walked: Mapping[str, Sequence[FoundFile]], loose: Sequence[FoundFile], now_s: float) -> Listing:
    """Tell the items from what else is there. Of single files only an encoder's weights are an item."""
    items: dict[str, Item] = {}
    others: dict[str, Item] = {}
    temporary: list[FoundFile] = []
    for file in loose:
        is_weights = file.name.startswith(f"{ENCODERS}/")
        if is_weights and is_left_over(file, now_s):
            temporary.append(file)
            continue
        found = items if is_weights and is_item(file.name) else others
        found[file.name] = Item(file.name, [file])
    for name, files in walked.items():
        if is_item(name) and not name.startswith(f"{ENCODERS}/"):
            left = [file for file in files if is_left_over(file, now_s)]
            temporary += left
            items[name] = Item(name, [file for file in files if not is_left_over(file, now_s)] if left else files)
        elif files:
            others[name] = Item(name, files)
    return Listing(items, temporary, others)


def is_item(name: str) -> bool:
    """Whether distmil itself makes items of such a name."""
    kind, _, rest = name.partition("/")
    patterns = {**dict.fromkeys(STAGES, _FINGERPRINT), ENCODERS: _WEIGHTS, "comparisons": _NAMES}
    return kind in KINDS and patterns.get(kind, _NAME).fullmatch(rest) is not None


def is_left_over(file: FoundFile, now_s: float) -> bool:
    """Whether a killed writer left a file that was not whole yet."""
    return bool(_TEMPORARY.fullmatch(file.name.rpartition("/")[2])) and now_s - file.written_s >= BUSY_S


def total_size(files: Iterable[FoundFile]) -> int:
    """Sum the sizes of files, in bytes."""
    return sum(file.size_bytes for file in files)
