"""A procedural cohort, for the demo and the tests."""
