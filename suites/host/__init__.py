"""Suite host: what the processor and its memory sustain."""
