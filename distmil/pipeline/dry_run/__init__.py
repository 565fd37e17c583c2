"""The dry run of a job: what would be done, how much of it, and how long it would take."""
