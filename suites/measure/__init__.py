"""The measurement loop: warm-up, sampling, stopping, checks, flags."""
