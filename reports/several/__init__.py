"""Several runs or machines in one report: see :func:`wattline.reports.write_comparison`."""
