"""Suite memory: bandwidth and latency from the first cache to main memory."""
