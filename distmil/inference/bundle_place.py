"""Where a bundle is, and which: looked up without torch, so that a wrong name is refused at once."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distmil.config.root import fingerprint
from distmil.errors import BundleError
from distmil.storage.records import Record
from distmil.storage.store import RECORD_FILE, Store

MODELS = "models"
"""Folder of the bundles in a store, by run."""
MAX_RUNS = 20
BUNDLE_VERSION = 2
FIRST_VERSION = 1
"""Its commit record names the weights alone; config.json and labels.json have no checksum."""


def bundle_folder(run: str) -> str:
    """Name the folder of a run's bundle in its store."""
    return f"{MODELS}/{run}"


def is_run(place: str, store: Store) -> bool:
    """Tell whether a place is the name of a run in the store; a folder of that name counts where it is a bundle."""
    if "://" in place or not place or Path(place).is_absolute():
        return False
    return not (Path(place).expanduser() / RECORD_FILE).is_file() and store.exists(bundle_folder(place))


def find_bundle(place: str, store: Store, *, key: str) -> Store:
    """Open the bundle's folder as a store of its own.

    Args:
        place: A folder, its URI, or a run's name.
        store: Where runs are looked up by name.
        key: What the user calls ``place``, for the message.

    Raises:
        BundleError: If there is none.
    """
    if is_run(place, store):
        return Store(store.path(bundle_folder(place)))
    folder = place if "://" in place else str(Path(place).expanduser().resolve())
    if "://" not in folder and not Path(folder).is_dir():
        raise BundleError(
            f"{key} = {place!r}: there is no such folder, nor a run of that name under {store.root}/{MODELS}; "
            f"{runs_there(store, Path(place).name)}"
        )
    if "://" not in folder and (Path(folder) / MODELS).is_dir() and not (Path(folder) / RECORD_FILE).exists():
        raise BundleError(
            f"{key} = {place!r}: this is a storage root, not a bundle; give a run of it: "
            f"{runs_there(Store(folder), '')}"
        )
    return Store(folder)


def home_of(bundle: Store) -> str | None:
    """Return the root of the store that holds a bundle's folder under ``models/``; None where it lies elsewhere."""
    base, mark, options = bundle.root.partition("?") if "://" in bundle.root else (bundle.root, "", "")
    home, _, name = base.rstrip("/").rpartition("/")[0].rpartition("/")
    return f"{home or '/'}{mark}{options}" if name == MODELS else None


def bundle_digest(record: Record, read: Callable[[str], Any]) -> str:
    """Hash everything that predictions depend on.

    Args:
        record: The bundle's commit record.
        read: Reads one of the bundle's JSON files.
    """
    if record.key.get("format_version") != FIRST_VERSION:
        return record.digest
    loose = [read(name) for name in ("config.json", "labels.json")]  # the record does not cover them
    return fingerprint({"record": record.digest, "files": loose}, length=64)


def runs_there(store: Store, wanted: str) -> str:
    """List the runs of a store that have a bundle, first those with nearly the wanted name."""
    runs = [name for name in store.folders(MODELS) if store.exists(f"{MODELS}/{name}/{RECORD_FILE}")]
    if not runs:
        return "no run there is trained to its end"
    close = difflib.get_close_matches(wanted, runs, n=2)
    more = f" and {len(runs) - MAX_RUNS} more" if len(runs) > MAX_RUNS else ""
    meant = f"did you mean {' or '.join(close)}? The" if close else "the"
    return f"{meant} runs there: {', '.join(runs[:MAX_RUNS])}{more}"
