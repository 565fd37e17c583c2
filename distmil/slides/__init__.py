"""Slide files to pixels."""
