"""Bundles, scores, thresholds and metrics."""
