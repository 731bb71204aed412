"""Attention, and the row-wise operations around it."""
