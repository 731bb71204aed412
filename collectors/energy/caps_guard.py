"""Our side of the watchdog: starts it, tells it what to put back, and lets it go."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattline.errors import DeviceError, UnsupportedError, WattlineError, storage_error

ANSWER_S = 60.0
"""How long the watchdog may take to answer: it may first have to put back what an earlier run left."""


class Watchdog:
    """The process that guards one GPU's settings, and the lock on them.

    Args:
        folder: where the journal stands.
        uuid: names the GPU.

    Attributes:
        mended: the plan that an earlier run had left behind, carried out by now; or ``None``.

    Raises:
        UnsupportedError: another process holds the settings of this GPU (code ``"caps_busy"``).
        DeviceError: it does not start, or what an earlier run left behind cannot be put back.
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path, uuid: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, "making", folder) from error
        # -P: the current folder may hold files named like modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wattline.collectors.energy.caps_watchdog",
             str(folder / f"caps-{uuid}.json"), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._buffer = b""
        try:
            answer = self._answer()
            if "busy" in answer:
                raise UnsupportedError(
                    "the power limit and clocks of this GPU are held by another process",
                    why=answer["busy"],
                    todo="wait for the other run to end: two that set limits would undo each other",
                    code="caps_busy",
                )
            if "failed" in answer:
                raise DeviceError(
                    "what an earlier run had set on this GPU could not be put back",
                    why=answer["failed"],
                    todo="see whether nvidia-smi works, then repeat",
                )
        except BaseException:
            self.close(done=True)
            raise
        self.mended: dict[str, Any] | None = answer.get("put_back")

    def arm(self, plan: Mapping[str, Any]) -> None:
        """Have a plan guarded; it is on disk when this returns.

        Raises:
            DeviceError: the process is gone or does not answer: then nothing may be changed.
        """
        self._send({"arm": dict(plan)})
        self._answer()

    def close(self, *, done: bool) -> None:
        """Let it go; if not ``done``, it tries to put things back itself."""
        process = self._process
        if done:
            with contextlib.suppress(WattlineError):  # gone already: nothing is left to say
                self._send({"done": True})
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def _answer(self) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        until = time.monotonic() + ANSWER_S
        while b"\n" not in self._buffer:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise DeviceError(f"the watchdog of the power limits did not answer within {ANSWER_S:g} s")
            data = os.read(out.fileno(), 65536)
            if not data:
                raise self._gone()
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> WattlineError:
        """Without its guard nothing may be changed."""
        said = b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
            if self._process.stderr is not None:
                said = self._process.stderr.read()
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it says nothing"]
        return DeviceError("the watchdog of the power limits is gone", why=last[0], todo="no limit was changed; repeat")
