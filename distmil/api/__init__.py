"""The door for Python: what a notebook needs, without Ray. ``import distmil`` has all of it."""
