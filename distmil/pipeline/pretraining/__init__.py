"""The pre-training job on Ray Train."""
