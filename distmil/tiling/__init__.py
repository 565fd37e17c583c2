"""Slides to Parquet shards of patches."""
