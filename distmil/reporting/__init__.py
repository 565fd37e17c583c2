"""Pages for people: the report of a training or an evaluation, and runs against each other. One file each."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.reporting.comparison_page import ComparisonPage
    from distmil.reporting.run_report import RunReport

__all__ = ["ComparisonPage", "RunReport"]

lazy_exports(__name__)
