"""Search spaces, trials and their comparison."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.search.comparison import compare
    from distmil.search.space import read_space

__all__ = ["compare", "read_space"]

lazy_exports(__name__)
