"""Networks, pooling and loss formulas."""
