"""Tiling and embedding at the same time: two pools of actors behind each other in one Ray Data pipeline."""
