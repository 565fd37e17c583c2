"""Bags of embeddings: on disk, sampled, packed into batches."""
