"""A GPU whose caps may be set, and a process that caps it and may be killed.

The driver is a stand-in for `pynvml` whose state is a file, so that the process under test, its watchdog and the test
see the same GPU. Processes, signals, pipes and locks are real.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from wattline.collectors.energy.caps import GpuCaps

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


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
