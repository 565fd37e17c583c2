"""Search spaces, trials and their comparison."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.search.comparison import compare
    from distmil.search.space import read_space

__all__ = ["compare", "read_space"]
__getattr__, __dir__ = lazy_exports(__name__, {
    "comparison": ["compare"],
    "space": ["read_space"],
})  # fmt: skip
