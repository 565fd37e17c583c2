"""The door for Python: what a notebook needs, without Ray. ``import distmil`` has all of it."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.api.bundles import load_bundle
    from distmil.api.learning import Bags, FittedRun, fit, open_bags
    from distmil.api.slides import open_slide, read_manifest

__all__ = ["Bags", "FittedRun", "fit", "load_bundle", "open_bags", "open_slide", "read_manifest"]

lazy_exports(__name__)
