"""Epochs, steps and checkpoints of one run."""
