"""The store: commits, local folders, object stores."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.storage.store import Part, Record, Store, resolve_root

__all__ = ["Part", "Record", "Store", "resolve_root"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "store": ["Part", "Record", "Store", "resolve_root"],
})  # fmt: skip
