"""CSV: one line per record, the columns of ``Run.to_frame()``; raw samples stay with the run.

Absent is an empty field; times are in seconds, energy in joules, power in watts. Text that a spreadsheet would
take for a formula is written as it is: this is data, not a document.
"""

from __future__ import annotations

from typing import BinaryIO

from wattline.run import Run

SUFFIX = ".csv"
BINARY = False


def write(run: Run, sink: BinaryIO) -> int:
    """Write every record; returns their number."""
    frame = run.to_frame()
    sink.write(frame.to_csv(index=False, lineterminator="\n").encode())
    return len(frame)
