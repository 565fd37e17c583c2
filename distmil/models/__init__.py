"""Networks and pooling."""
