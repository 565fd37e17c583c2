"""What is in the store, what refers to it, and what can go."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.inventory.removal import remove
    from distmil.inventory.survey import Inventory, survey

__all__ = ["Inventory", "remove", "survey"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "removal": ["remove"],
    "survey": ["Inventory", "survey"],
})  # fmt: skip
