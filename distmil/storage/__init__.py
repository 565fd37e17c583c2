"""The store: commits, local folders, object stores."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.storage.records import Part, Record
    from distmil.storage.roots import resolve_root
    from distmil.storage.store import Committed, Store

__all__ = ["Committed", "Part", "Record", "Store", "resolve_root"]

lazy_exports(__name__)
