"""What parent and worker say to each other: one JSON object a line.

The worker reads requests from its standard input and answers on a pipe of its own, so that whatever kernels and
libraries print cannot garble an answer.
"""

from __future__ import annotations

import json
import os
from typing import Any

# Requests of the parent.
HELLO = "hello"  # device, settings -> READY
PROBE = "probe"  # formats -> PROBED
MEASURE = "measure"  # planned case, seed, sequence -> PROGRESS*, then RECORD or STICKY
QUIT = "quit"

# Answers of the worker.
READY = "ready"
PROBED = "probed"
PROGRESS = "progress"
TRACE = "trace"  # comes before its record, where something was sampled over time
RECORD = "record"
STICKY = "sticky"  # the record is in it, and the process must be replaced
SERIES = "series"  # from a group of ranks: one rank's iterations, before the record
LOST = "lost"  # from a group of ranks: it is broken, what and why, whether by a hang; the group ends
FAILED = "failed"  # the request could not be carried out: what, why, todo


def encode(kind: str, **content: Any) -> bytes:
    """One message as a line."""
    return json.dumps({"kind": kind, **content}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message of a line.

    Raises:
        ValueError: not a message.
    """
    data = json.loads(line)
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise ValueError("not a message")
    return data


class Sender:
    """Writes messages to a descriptor, each in one piece."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, kind: str, **content: Any) -> None:
        """Send one message.

        Raises:
            BrokenPipeError: nobody listens any more.
        """
        data = memoryview(encode(kind, **content))
        while data:
            data = data[os.write(self._descriptor, data) :]
