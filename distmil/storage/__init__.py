"""The store: commits, local folders, object stores."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.storage.records import Part, Record
    from distmil.storage.roots import resolve_root
    from distmil.storage.store import Committed, Store

__all__ = ["Committed", "Part", "Record", "Store", "resolve_root"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "records": ["Part", "Record"],
    "roots": ["resolve_root"],
    "store": ["Committed", "Store"],
})  # fmt: skip
