"""Bundles, scores and thresholds."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.inference.bundle import Bundle, load_bundle, save_bundle
    from distmil.inference.scoring import BagScores, score_bag
    from distmil.inference.slide_prediction import SlidePrediction

__all__ = ["BagScores", "Bundle", "SlidePrediction", "load_bundle", "save_bundle", "score_bag"]

lazy_exports(__name__)
