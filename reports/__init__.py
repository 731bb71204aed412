"""What a person sees of a run: figures and one self-contained HTML file.

Importing this package is light: pandas, matplotlib and jinja2 load when a report is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["compare_runs", "write_comparison", "write_report"]

if TYPE_CHECKING:
    from wattline.reports.comparing.comparison import compare_runs
    from wattline.reports.html import write_report
    from wattline.reports.several.page import write_comparison


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from wattline.reports.html import write_report

        return write_report
    if name == "compare_runs":
        from wattline.reports.comparing.comparison import compare_runs

        return compare_runs
    if name == "write_comparison":
        from wattline.reports.several.page import write_comparison

        return write_comparison
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
