"""distmil: one network from slide labels and lesion outlines, on Ray."""

__version__ = "0.1.0"
