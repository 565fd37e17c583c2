"""Files to pixels and outlines."""
