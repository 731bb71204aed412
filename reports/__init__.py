"""What a person sees of a run: figures and one self-contained HTML file.

Importing this package is light: pandas, matplotlib and jinja2 load when a report is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["write_report"]

if TYPE_CHECKING:
    from wattline.reports.html import write_report


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from wattline.reports.html import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
