"""What leaves a prediction for other programs: regions, maps with their place on the slide, and tables."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.exporting.regions import Region
    from distmil.exporting.slide_export import SlideExport

__all__ = ["Region", "SlideExport"]

lazy_exports(__name__)
