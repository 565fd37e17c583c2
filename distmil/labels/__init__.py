"""Annotations to patch labels."""
