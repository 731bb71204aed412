"""Comparison of two runs, or two sets of repeated runs: see :func:`wattline.reports.compare_runs`."""
