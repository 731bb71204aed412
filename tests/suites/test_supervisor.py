"""The parent's handle on a worker, with real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from wattline.errors import UnsupportedError
from wattline.suites import protocol
from wattline.suites.settings import MeasureSettings
from wattline.suites.supervisor import StopNow, WorkerDied, WorkerHandle, WorkerHung


@pytest.fixture
def worker(tmp_path: Path) -> WorkerHandle:
    return WorkerHandle(tmp_path / "worker.log", lambda: False)


def greet(worker: WorkerHandle, device: str = "cpu") -> dict[str, object]:
    worker.send(protocol.HELLO, device=device, settings=MeasureSettings().to_dict(), ceilings=None)
    return worker.wait_for((protocol.READY,), 120.0)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_greeting_tells_the_device_and_quitting_ends_the_process(worker: WorkerHandle) -> None:
    ready = greet(worker)
    assert str(ready["device"]["id"]).startswith("cpu-")  # type: ignore[index]
    worker.quit()
    assert gone(worker.pid)


def test_an_error_of_the_worker_arrives_as_itself(worker: WorkerHandle) -> None:
    with pytest.raises(UnsupportedError, match="nonesuch"):
        greet(worker, device="nonesuch")
    worker.quit()


def test_a_death_tells_the_signal(worker: WorkerHandle) -> None:
    os.kill(worker.pid, signal.SIGSEGV)
    with pytest.raises(WorkerDied) as caught:
        greet(worker)
    assert caught.value.status == -signal.SIGSEGV
    assert "SIGSEGV" in caught.value.describe()
    worker.kill()


def test_silence_beyond_the_deadline_kills(worker: WorkerHandle) -> None:
    with pytest.raises(WorkerHung):
        worker.wait_for((protocol.READY,), 0.5)  # never greeted, so it waits for ever
    assert gone(worker.pid)


def test_a_wish_to_stop_kills_at_once(tmp_path: Path) -> None:
    worker = WorkerHandle(tmp_path / "worker.log", lambda: True)
    with pytest.raises(StopNow):
        worker.wait_for((protocol.READY,), 60.0)
    assert gone(worker.pid)


def test_a_closed_input_ends_the_worker(worker: WorkerHandle) -> None:
    greet(worker)
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    begin = time.monotonic()
    while worker._process.poll() is None and time.monotonic() - begin < 20:
        time.sleep(0.05)
    assert worker._process.poll() == 0
    worker.kill()


def test_an_exit_status_is_described() -> None:
    assert WorkerDied(3).describe() == "the worker process ended with status 3"
    assert "out-of-memory killer" in WorkerDied(-9).describe()


@pytest.mark.parametrize("line", [b"[]", b"{}", b"nonsense", b'{"kind":1}'])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|Expecting|Extra"):
        protocol.decode(line)


def test_messages_survive_the_way() -> None:
    line = protocol.encode(protocol.PROGRESS, phase='a "quoted"\nphase', time_s=1.5, precision=None)
    assert line.count(b"\n") == 1
    assert protocol.decode(line) == {
        "kind": "progress", "phase": 'a "quoted"\nphase', "time_s": 1.5, "precision": None
    }  # fmt: skip
