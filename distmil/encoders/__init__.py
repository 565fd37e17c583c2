"""Patches to embeddings."""
