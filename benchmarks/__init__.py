"""Measurements and attacks behind the numbers in the documentation; run them from the project's folder."""
