"""Networks of encoders: how they are built, and what stands before and behind them."""
