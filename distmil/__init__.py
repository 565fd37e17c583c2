"""distmil: one network from slide labels and lesion outlines, on Ray."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.api.bundles import load_bundle
    from distmil.api.learning import Bags, FittedRun, fit, open_bags
    from distmil.api.prediction import predict_slide
    from distmil.api.results import Results, open_results
    from distmil.api.slides import open_slide, read_manifest
    from distmil.errors import BundleError, ConfigError, DistmilError, SlideError
    from distmil.inference.bundle import Bundle
    from distmil.inference.slide_prediction import SlidePrediction
    from distmil.slides.image import SlideImage

__version__ = "0.1.0"
__all__ = [
    "Bags",
    "Bundle",
    "BundleError",
    "ConfigError",
    "DistmilError",
    "FittedRun",
    "Results",
    "SlideError",
    "SlideImage",
    "SlidePrediction",
    "fit",
    "load_bundle",
    "open_bags",
    "open_results",
    "open_slide",
    "predict_slide",
    "read_manifest",
]

lazy_exports(__name__)
