"""Features that other tools made, into the store and out of it."""
