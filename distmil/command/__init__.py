"""The command line of jobs: arguments, the next steps, and versions."""
