"""Suites: what to run (workloads), and how to run it (plan, runner, worker, measurement loop)."""
