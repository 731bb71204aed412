"""Products of quantised matrices."""
