"""The stages: the only rooms that import Ray."""
