"""Heat maps, slide pictures and the tiling report."""
