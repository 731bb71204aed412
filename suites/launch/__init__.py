"""Suite launch: what it costs to start kernels, and who waits for whom."""
