"""Processes: what a job started, signals, children that may crash, work in the background."""
