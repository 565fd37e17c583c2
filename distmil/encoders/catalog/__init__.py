"""The named encoders as data: how each is made, what it takes and what it gives. No torch."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.encoders.catalog.names import check_name, find_row, names_of, width_of
    from distmil.encoders.catalog.own import ENTRY_POINTS, OwnEncoder
    from distmil.encoders.catalog.row import EncoderRow
    from distmil.encoders.catalog.rows import ROWS

__all__ = [
    "ENTRY_POINTS",
    "ROWS",
    "EncoderRow",
    "OwnEncoder",
    "check_name",
    "find_row",
    "names_of",
    "width_of",
]

lazy_exports(__name__)
