"""The job that takes predictions out of the store."""
