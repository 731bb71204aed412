"""The process that puts a GPU's power limit and clocks back when the one that changed them is gone.

A process that is killed cleans nothing up. So :class:`~wattline.collectors.energy.caps.GpuCaps` starts this one
first, in a session of its own and deaf to the signals of a terminal, and tells it what to put back before it changes
anything. It waits for the end of its standard input or for another parent, whichever comes first: a pipe alone may
be held open by a forked child, and a look at the parent alone comes late.

What is to be put back also stands in a journal, locked for as long as this process lives. A second user of the same
GPU is refused; and where both processes were killed together (a container that is stopped, a machine that lost
power), the next one finds the journal and puts the settings back before anything else.

Lines of JSON on standard input and output::

    < {"ready": true, "put_back": {...} or null}      or {"busy": "..."} or {"failed": "..."}, and it ends
    > {"arm": {"uuid": "GPU-...", "power_limit_mw": 700000, "reset_clocks": true}}
    < {"armed": true}
    > {"done": true}
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

POLL_S = 0.25
"""Seconds between two looks at the parent."""

LOCK_WAIT_S = 5.0
"""How long to wait for another watchdog, which may be putting things back at this moment."""

RETRY_S = (0.0, 0.5, 2.0, 5.0)
"""Waits before each attempt to put things back: a driver that resets a device answers again after some seconds."""

Plan = Mapping[str, Any]
"""What to put back: ``uuid``, ``power_limit_mw`` (or ``None``) and ``reset_clocks``."""


def put_back(binding: Any, plan: Plan) -> list[str]:
    """Put back what a plan names, every part of it even where another fails, and read the result.

    Args:
        binding: a module like `pynvml`, initialised.
        plan: what to put back.

    Returns:
        What went wrong; empty when all is as it was.
    """
    try:
        handle = binding.nvmlDeviceGetHandleByUUID(plan["uuid"])
    except binding.NVMLError as error:
        return [f"the GPU {plan['uuid']} is not found: {error}"]
    wrong = []
    limit_mw = plan.get("power_limit_mw")
    if limit_mw is not None:
        try:
            binding.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
            read_mw = binding.nvmlDeviceGetPowerManagementLimit(handle)
            if read_mw != limit_mw:
                wrong.append(f"the power limit reads {read_mw / 1e3:g} W, not {limit_mw / 1e3:g} W")
        except binding.NVMLError as error:
            wrong.append(f"the power limit of {limit_mw / 1e3:g} W: {error}")
    if plan.get("reset_clocks"):
        try:
            binding.nvmlDeviceResetGpuLockedClocks(handle)
        except binding.NVMLError as error:
            wrong.append(f"the clocks: {error}")
    return wrong


def boot_id() -> str:
    """Names this boot of the kernel: settings do not outlive it. Empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _say(message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the end of standard input follows
        os.write(1, json.dumps(message).encode() + b"\n")


class _Journal:
    """The plan on disk, locked while this process lives."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def lock(self, wait_s: float) -> bool:
        """Take the lock; false when another process keeps it."""
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(0.05)
            else:
                return True

    def read(self) -> dict[str, Any] | None:
        """The plan that an earlier process of this boot left behind."""
        text = os.pread(self._file, 65536, 0)
        # Empty, or torn: nothing was changed before the whole of it was on disk.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(text)
            plan = entry["plan"]
            if entry["boot"] == boot_id() and isinstance(plan["uuid"], str):
                return dict(plan)
        return None

    def write(self, plan: Plan | None, wrong: list[str] | None = None) -> None:
        """Keep the plan, or none."""
        text = b""
        if plan is not None:
            text = json.dumps({"boot": boot_id(), "plan": dict(plan), "wrong": wrong or []}).encode()
        # The new text is written over the old before it is cut to length: a torn write is no JSON, and is ignored.
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))
        os.fsync(self._file)


def _lines(parent: int) -> Iterator[dict[str, Any]]:
    """Lines from standard input, until it ends or the parent is gone."""
    buffer = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while os.getppid() == parent:
        if not poll.poll(POLL_S * 1e3):
            continue
        data = os.read(0, 65536)
        if not data:
            return
        buffer += data
        *whole, buffer = buffer.split(b"\n")
        for line in whole:
            yield json.loads(line)


def _restore(binding: Any, plan: Plan) -> list[str]:
    """Put back, with patience; what is still wrong at the end."""
    wrong: list[str] = []
    for wait_s in RETRY_S:
        time.sleep(wait_s)
        if wait_s:  # a library that was open while a device was reset has to be opened anew
            try:
                binding.nvmlShutdown()
                binding.nvmlInit()
            except binding.NVMLError as error:
                wrong = [str(error)]
                continue
        wrong = put_back(binding, plan)
        if not wrong:
            break
    return wrong


def watch(journal_path: str, parent: int, binding: Any) -> int:
    """Guard until the parent is done or gone; returns the exit status."""
    journal = _Journal(journal_path)
    if not journal.lock(LOCK_WAIT_S):
        _say({"busy": "another process holds the limits of this GPU"})
        return 3
    binding.nvmlInit()
    left = journal.read()
    if left is not None:
        wrong = _restore(binding, left)
        if wrong:
            _say({"failed": "; ".join(wrong)})
            return 4
        journal.write(None)
    _say({"ready": True, "put_back": left})
    plan: Plan | None = None
    for message in _lines(parent):
        if message.get("done"):
            journal.write(None)
            return 0
        plan = message["arm"]
        journal.write(plan)
        _say({"armed": True})
    if plan is not None:
        wrong = _restore(binding, plan)
        journal.write(plan if wrong else None, wrong)
        return 4 if wrong else 0
    return 0


def main() -> int:
    """``python -m wattline.collectors.energy.caps_watchdog JOURNAL PARENT``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    return watch(sys.argv[1], int(sys.argv[2]), importlib.import_module("pynvml"))


if __name__ == "__main__":
    sys.exit(main())
