"""Search spaces, trials and their comparison."""
