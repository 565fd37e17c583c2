"""What is in the store, what refers to it, and what can go."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.inventory.removal import remove
    from distmil.inventory.survey import Inventory

__all__ = ["Inventory", "remove"]

lazy_exports(__name__)
