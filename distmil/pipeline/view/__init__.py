"""The job that shows finished predictions in a browser; it needs no Ray."""
