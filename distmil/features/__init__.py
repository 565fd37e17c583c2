"""Features that other tools made: their files read, checked, imported as embeddings, and written."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.features.exporter import export_slide
    from distmil.features.finding import FeatureFolder, open_folder
    from distmil.features.importer import SlideImporter
    from distmil.features.slide_table import SlideTable

__all__ = ["FeatureFolder", "SlideImporter", "SlideTable", "export_slide", "open_folder"]

lazy_exports(__name__)
