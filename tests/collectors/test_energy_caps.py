"""Power limits and clocks: what may be set, and that it is put back on every way out, kills included.

The driver is a stand-in for `pynvml` whose state is a file, so that the process under test, its watchdog and the test
see the same GPU. Processes, signals, pipes and locks are real.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wattline.collectors.energy.caps import Cap, GpuCaps, parse_caps
from wattline.errors import DeviceError, ParamError, UnsupportedError

UUID = "GPU-11111111-2222-3333-4444-555555555555"
FAKE = '''
import fcntl, json, os

class NVMLError(Exception):
    value = 999
def _kind(name, code):
    globals()["NVMLError_" + name] = type("NVMLError_" + name, (NVMLError,), {"value": code})
for _name, _code in (("NoPermission", 4), ("NotSupported", 3), ("NotFound", 6), ("GpuIsLost", 15), ("Unknown", 999)):
    _kind(_name, _code)

def _state(change=None):
    with open(os.environ["FAKE_GPU"], "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        if change is not None:
            change(state)
            text = json.dumps(state)
            file.seek(0); file.write(text); file.truncate()
    if state["lost"]:
        raise globals()["NVMLError_GpuIsLost"]("lost")
    return state

def _ask(name):
    value = _state()[name]
    if value is None:
        raise globals()["NVMLError_NotSupported"](name)
    return value

def _set(name, value):
    state = _state()
    if not state["permission"]:
        raise globals()["NVMLError_NoPermission"](name)
    if state[name] is None:
        raise globals()["NVMLError_NotSupported"](name)
    def change(state):
        state["log"].append([name, value])
        if state["refusals"] > 0 and state["armed"]:
            state["refusals"] -= 1
        else:
            state[name] = value
            state["failed"] = False
            return
        state["failed"] = True
    if _state(change)["failed"]:
        raise globals()["NVMLError_Unknown"](name)

def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetHandleByIndex(index):
    if index != 0:
        raise globals()["NVMLError_NotFound"]("no such index")
    return "handle"
def nvmlDeviceGetHandleByUUID(uuid):
    if uuid != _state()["uuid"]:
        raise globals()["NVMLError_NotFound"](uuid)
    return "handle"
def nvmlDeviceGetUUID(handle): return _ask("uuid")
def nvmlDeviceGetName(handle): return "Imaginary GPU"
def nvmlDeviceGetPowerManagementLimit(handle): return _ask("limit_mw")
def nvmlDeviceGetEnforcedPowerLimit(handle): return min(_ask("limit_mw"), 650000)
def nvmlDeviceGetPowerManagementDefaultLimit(handle): return 700000
def nvmlDeviceGetPowerManagementLimitConstraints(handle):
    _ask("limit_mw")
    return [200000, 700000]
def nvmlDeviceGetSupportedMemoryClocks(handle): return [2619, 1593] if _state()["locked"] is not None else []
def nvmlDeviceGetSupportedGraphicsClocks(handle, memory):
    assert memory == 2619
    return [1980, 1965, 1410, 345]
def nvmlDeviceSetPowerManagementLimit(handle, mw): _set("limit_mw", mw)
def nvmlDeviceSetGpuLockedClocks(handle, low, high): _set("locked", [low, high])
def nvmlDeviceResetGpuLockedClocks(handle): _set("locked", [])
'''
CHILD = """
import os, sys, time
from wattline.collectors.energy.caps import GpuCaps, Cap
with GpuCaps(0) as caps:
    caps.apply(Cap(500.0, 1.41e9))
    child = os.fork() if "fork" in sys.argv else 0
    if "fork" in sys.argv and child == 0:
        print(caps._watchdog._process.pid, os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    if not child:
        print(caps._watchdog._process.pid, 0, flush=True)
    if "exit" in sys.argv:
        os._exit(7)
    if "raise" in sys.argv:
        raise ValueError("the load failed")
    time.sleep(60)
"""


class Gpu:
    """The stand-in: its state, and its module for this process."""

    def __init__(self, folder: Path) -> None:
        (folder / "site").mkdir()
        (folder / "site/pynvml.py").write_text(FAKE)
        self.path = folder / "gpu.json"
        self.states = folder / "state/wattline"
        state = {"uuid": UUID, "limit_mw": 600000, "locked": [], "permission": True, "lost": False}
        self.path.write_text(json.dumps(state | {"refusals": 0, "armed": False, "failed": False, "log": []}))

    def __getitem__(self, name: str) -> Any:
        return json.loads(self.path.read_text())[name]

    def set(self, **values: Any) -> None:
        self.path.write_text(json.dumps(json.loads(self.path.read_text()) | values))

    def binding(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("pynvml_stand_in", self.path.parent / "site/pynvml.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def caps(self) -> GpuCaps:
        return GpuCaps(0, binding=self.binding())

    @property
    def settings(self) -> tuple[int, list[int]]:
        return self["limit_mw"], self["locked"]

    @property
    def journal(self) -> str:
        return (self.states / f"caps-{UUID}.json").read_text()


AS_FOUND = (600000, [])
CAPPED = (500000, [1410, 1410])


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu(tmp_path)
    monkeypatch.setenv("FAKE_GPU", str(gpu.path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))  # the watchdog's pynvml
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return gpu


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


class Run:
    """A process that caps the GPU and would hold it for a minute."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, start_new_session=True, text=True
        )
        assert self.process.stdout
        self.watchdog, self.forked = map(int, self.process.stdout.readline().split())

    def kill(self, number: int) -> None:
        os.kill(self.process.pid, number)
        self.process.wait(timeout=30)


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def start(*arguments: str) -> Run:
        started.append(Run(*arguments))
        return started[-1]

    yield start
    for each in started:
        for pid in filter(None, (each.process.pid, each.forked)):
            if pid != each.process.pid or each.process.poll() is None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        each.process.wait(timeout=30)
        each.process.stdout.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parse_caps_is_the_product_of_both_lists() -> None:
    assert parse_caps() == (Cap(),)
    assert parse_caps("700,600W") == (Cap(700.0), Cap(600.0))
    assert parse_caps("none,300:500:+100") == (Cap(), Cap(300.0), Cap(400.0), Cap(500.0))
    assert parse_caps(" 0.5kW ", "1410, 1980 MHz,1.2GHz, none") == (
        Cap(500.0, 1.41e9), Cap(500.0, 1.98e9), Cap(500.0, 1.2e9), Cap(500.0, None),
    )  # fmt: skip
    assert Cap(500.0, 1.41e9).label == "500 W, 1.41 GHz"
    assert Cap().label == "no cap"


@pytest.mark.parametrize(("limits", "clocks"), [("0", ""), ("-5", ""), ("", "0MHz"), ("lots", ""), ("500V", "")])
def test_parse_caps_refuses(limits: str, clocks: str) -> None:
    with pytest.raises(ParamError):
        parse_caps(limits, clocks)


def test_a_cap_holds_in_the_block_and_is_gone_behind_it(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        assert caps.writable
        assert caps.found.power_limit_w == 600.0
        assert caps.found.sm_clocks_hz == (345e6, 1410e6, 1965e6, 1980e6)
        assert gpu.settings == AS_FOUND
        held = caps.apply(Cap(500.0, 1.40e9))  # the nearest clock that the part has
        assert gpu.settings == CAPPED
        assert held.power_limit_w == held.enforced_power_limit_w == 500.0
        assert json.loads(gpu.journal)["plan"] == {"uuid": UUID, "power_limit_mw": 600000, "reset_clocks": True}
        assert caps.apply(Cap(700.0)).enforced_power_limit_w == 650.0  # another limit is lower
        assert gpu.settings == (700000, [])
        caps.apply(Cap(None, 1.98e9))
        assert gpu.settings == (600000, [1980, 1980])
        caps.restore()
        assert gpu.settings == AS_FOUND
        caps.apply(Cap(500.0))
        watchdog = caps._watchdog._process
    assert gpu.settings == AS_FOUND
    assert gpu.journal == ""
    assert watchdog.returncode == 0
    caps.close()  # once more does no harm
    with pytest.raises(UnsupportedError, match="not open"):
        caps.apply(Cap(500.0))


def test_a_block_that_caps_nothing_writes_nothing_but_the_limit_that_is_there(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        caps.apply(Cap())
    assert gpu["log"] == [["limit_mw", 600000]]


def test_what_the_gpu_does_not_allow_is_refused_before_anything_changes(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        with pytest.raises(ParamError, match="150 W") as caught:
            caps.apply(Cap(150.0, 1.41e9))
        assert "200 to 700 W" in caught.value.why
        with pytest.raises(ParamError, match=r"2\.50 GHz"):
            caps.apply(Cap(500.0, 2.5e9))
        assert gpu.settings == AS_FOUND
        assert caps.check(Cap(None, 1.97e9)) == Cap(None, 1.965e9)


def test_without_permission_it_is_read_only_and_says_so(gpu: Gpu) -> None:
    gpu.set(permission=False)
    with gpu.caps() as caps:
        assert not caps.writable
        assert caps.reason.code == "no_permission"
        assert "read-only" in caps.reason.message
        assert "sudo nvidia-smi -pl" in caps.remedy
        assert caps.read().power_limit_w == 600.0
        with pytest.raises(UnsupportedError, match="may not change") as caught:
            caps.apply(Cap(500.0))
        assert caught.value.code == "no_permission"
    assert gpu["log"] == []
    assert not gpu.states.exists()  # no watchdog either


def test_a_part_without_a_power_limit_may_still_lock_clocks(gpu: Gpu) -> None:
    gpu.set(limit_mw=None)
    with gpu.caps() as caps:
        assert caps.found.power_limit_w is None
        with pytest.raises(UnsupportedError, match="no power limit"):
            caps.apply(Cap(500.0))
        caps.apply(Cap(None, 1.41e9))
        assert gpu["locked"] == [1410, 1410]
    assert gpu["locked"] == []
    gpu.set(locked=None)
    with gpu.caps() as caps:
        assert caps.reason.code == "not_supported"


def test_no_such_gpu(gpu: Gpu) -> None:
    with pytest.raises(UnsupportedError, match="asking for the GPU 5") as caught, GpuCaps(5, binding=gpu.binding()):
        pass
    assert caught.value.code == "no_gpu"


def test_no_driver(simulated_gpus: Callable[..., Any]) -> None:
    gpus = simulated_gpus("h200")
    gpus.fail("nvmlInit", 9)
    with pytest.raises(UnsupportedError, match="kernel module is not loaded"), GpuCaps(0, binding=gpus.binding()):
        pass


def test_an_exception_puts_back(gpu: Gpu) -> None:
    def load(caps: GpuCaps) -> None:
        caps.apply(Cap(500.0, 1.41e9))
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"), gpu.caps() as caps:
        load(caps)
    assert gpu.settings == AS_FOUND


def test_when_putting_back_fails_it_is_said_and_the_watchdog_goes_on(gpu: Gpu) -> None:
    caps = gpu.caps().__enter__()
    caps.apply(Cap(500.0))
    watchdog = caps._watchdog._process
    gpu.set(refusals=2, armed=True)  # ours, and the watchdog's first attempt
    with pytest.raises(DeviceError, match="could not be put back"):
        caps.close()
    assert watchdog.returncode == 0
    assert gpu.settings == AS_FOUND
    assert gpu.journal == ""


def test_a_gpu_lost_meanwhile_is_said_to_be_lost_and_mended_when_it_is_back(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        caps.apply(Cap(500.0))
        gpu.set(lost=True)
        with pytest.raises(DeviceError) as caught:
            caps.apply(Cap(400.0))
        assert caught.value.sticky
        gpu.set(lost=False)
    assert gpu.settings == AS_FOUND


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_killed_process_leaves_the_gpu_as_it_was(gpu: Gpu, run: Callable[..., Run], number: int) -> None:
    process = run()
    assert gpu.settings == CAPPED
    process.kill(number)
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")
    wait_for(lambda: not alive(process.watchdog), "the watchdog stays")
    assert gpu.journal == ""


def test_signals_to_the_whole_group_do_not_stop_the_watchdog(gpu: Gpu, run: Callable[..., Run]) -> None:
    process = run()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.watchdog, number)  # as a terminal or a service manager would
    time.sleep(0.1)
    assert alive(process.watchdog)
    os.killpg(process.process.pid, signal.SIGKILL)
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")


@pytest.mark.parametrize(("way", "status"), [("exit", 7), ("raise", 1)])
def test_every_other_way_out(gpu: Gpu, run: Callable[..., Run], way: str, status: int) -> None:
    assert run(way).process.wait(timeout=30) == status
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")


def test_a_forked_child_that_lives_on_holds_nothing_up(gpu: Gpu, run: Callable[..., Run]) -> None:
    """It inherits the pipe, so the pipe does not end: the watchdog sees that its parent is another."""
    process = run("fork")
    process.kill(signal.SIGKILL)
    assert alive(process.forked)
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")


def test_killed_together_the_next_run_puts_back_what_was_left(gpu: Gpu, run: Callable[..., Run]) -> None:
    process = run()
    os.kill(process.watchdog, signal.SIGKILL)
    process.kill(signal.SIGKILL)
    wait_for(lambda: not alive(process.watchdog), "the watchdog stays")
    assert gpu.settings == CAPPED
    with gpu.caps() as caps:
        assert caps.mended == {"uuid": UUID, "power_limit_mw": 600000, "reset_clocks": True}
        assert caps.found.power_limit_w == 600.0  # not the cap that was left
        assert gpu.settings == AS_FOUND
    with gpu.caps() as caps:
        assert caps.mended is None


def test_a_journal_of_another_boot_or_a_torn_one_is_ignored(gpu: Gpu) -> None:
    gpu.states.mkdir(parents=True)
    journal = gpu.states / f"caps-{UUID}.json"
    plan = {"uuid": UUID, "power_limit_mw": 300000, "reset_clocks": True}
    for text in (json.dumps({"boot": "another", "plan": plan}), '{"boot": "', "[]", '{"boot": 1, "plan": 5}'):
        journal.write_text(text)
        with gpu.caps() as caps:
            assert caps.mended is None
        assert gpu.settings == AS_FOUND


def test_a_second_user_of_the_same_gpu_is_refused(gpu: Gpu, run: Callable[..., Run]) -> None:
    process = run()
    with pytest.raises(UnsupportedError, match="held by another process") as caught, gpu.caps():
        pass
    assert caught.value.code == "caps_busy"
    assert gpu.settings == CAPPED
    process.kill(signal.SIGKILL)
    with gpu.caps() as caps:  # waits for the watchdog to finish
        assert caps.found.power_limit_w == 600.0


def test_a_driver_that_refuses_without_a_cause_is_a_failure_not_a_lack(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        gpu.set(refusals=1, armed=True)
        with pytest.raises(DeviceError, match="setting 500 W on Imaginary GPU"):
            caps.apply(Cap(500.0))
    assert gpu.settings == AS_FOUND


def test_without_its_watchdog_nothing_is_changed(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        caps._watchdog._process.kill()
        with pytest.raises(DeviceError, match="watchdog of the power limits is gone"):
            caps.apply(Cap(500.0))
        assert gpu.settings == AS_FOUND


def test_a_watchdog_that_cannot_start_says_why(gpu: Gpu) -> None:
    (gpu.path.parent / "site/pynvml.py").write_text("raise ImportError('broken binding')")
    caps = GpuCaps(0, binding=fake_of(FAKE))
    with pytest.raises(DeviceError, match="broken binding"), caps:
        pass
    assert gpu.settings == AS_FOUND


def test_with_the_real_binding_and_a_simulated_driver(
    simulated_gpus: Callable[..., Any], tmp_path: Path
) -> None:
    """The C library through `pynvml`, in both processes: the cap lowers the power, and a kill puts it back."""
    gpus = simulated_gpus("h200", may_set=1)
    gpu = gpus[0]
    gpu.demand(650.0)
    environment = gpus.env | {"XDG_STATE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline()
    assert gpu.state.limit_mw == 500_000
    assert 1395 <= gpu.state.locked_high_mhz <= 1425
    assert gpu.power() <= 500.0
    process.kill()
    process.wait(timeout=30)
    process.stdout.close()
    wait_for(lambda: gpu.state.limit_mw == 700_000 and gpu.state.locked_high_mhz == 0, "not put back")
    assert gpu.power() == pytest.approx(650.0)


@pytest.mark.parametrize(("may_set", "code"), [(0, "no_permission"), (1, None)])
def test_the_simulated_driver_says_whether_caps_may_be_set(
    simulated_gpus: Callable[..., Any], tmp_path: Path, may_set: int, code: str | None
) -> None:
    gpus = simulated_gpus("a100", may_set=may_set)
    state = str(tmp_path)
    done = gpus.python(
        "import sys; from wattline.collectors.energy.caps import *\n"
        "with GpuCaps(0, state_dir=sys.argv[1]) as caps:\n"
        "    print(caps.reason.code if caps.reason else None, caps.found.lowest_power_limit_w, caps.found.name)",
        state,
    )
    assert done.stdout.split(maxsplit=2) == [str(code), "100.0", "NVIDIA A100-SXM4-80GB\n"], done.stderr


def fake_of(source: str) -> ModuleType:
    module = ModuleType("pynvml_stand_in")
    exec(source, module.__dict__)
    return module
