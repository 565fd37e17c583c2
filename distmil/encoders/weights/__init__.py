"""Weights of encoders: tensors, their digest, and the places they come from."""
