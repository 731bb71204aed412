"""A simulated NVIDIA driver: a C ``libnvidia-ml.so.1`` that the real ``pynvml`` loads, with a truth that is known.

From a test, through the fixture ``simulated_gpus`` (skips where there is no C compiler)::

    def test_something(simulated_gpus, monkeypatch):
        gpus = simulated_gpus("h100", count=2)      # a key of PARTS; keywords set fields of every device
        gpus.install(monkeypatch)                   # in this process: `import pynvml` now gives the simulated driver
        done = gpus.python("import pynvml; ...")    # or a process of its own; or subprocess.run(..., env=gpus.env)
        gpu = gpus[0]
        with gpu.load():                            # true power is high; gpu.load(on=True) and (on=False) switch it
            ...
        gpu.energy(start, end)                      # true joules between two times of time.perf_counter()

``gpus.binding()`` gives a fresh ``pynvml`` module bound to this driver, for code that takes one. Everything follows
``time.perf_counter()`` (CLOCK_MONOTONIC), in every process that loads the library, and may be changed at any time:

* ``gpu.demand(watts)``: what the load wants; a power limit and locked clocks then lower it (``gpu.power()`` says to
  what). ``gpu.step(at_s, watts)`` and ``gpu.square(...)`` write steps directly, future ones included.
* ``gpu.state.<field>``: any field of :class:`DeviceState`: ``gain``, ``noise_w``, ``period_s``, ``counter_wrap_j``,
  ``temperature_c``, ``may_set`` (1: limits and clocks may be set), ``limit_mw``, ``mig`` ...
* ``gpus.fail("nvmlDeviceGetPowerUsage", NOT_SUPPORTED)``: a function fails from now on; ``"field:186"`` for one field
  value, ``"nvmlInit"`` to refuse altogether; ``device=``, ``from_s=``, ``until_s=`` narrow it; ``gpus.heal()``.
* ``gpu.lose()``: fallen off the bus, now or ``at_s``. ``gpu.reset_counter()``, ``gpu.stall_counter(seconds)``.
* ``gpu.throttle(reasons, policy)``, ``gpu.unthrottle(...)``; ``gpu.processes({pid: bytes})``.
* ``gpus.follow(pids)``: the load is on whenever these processes burn processor time; a CPU kernel stands for the GPU's.
* ``gpu.state.calls``: calls of the driver so far, for tests of a gentle pace.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

SOURCES = Path(__file__).parent / "nvml"
MAGIC, DEVICES, STEPS, RULES, PROCESSES, POLICIES = 0x4E564D4C53494D31, 8, 16384, 64, 16, 12

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST, UNKNOWN = 3, 4, 9, 13, 15, 999
POLICY_POWER, POLICY_THERMAL = 0, 1
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80


def _structure(title: str, /, **fields: Any) -> type[ctypes.Structure]:
    return type(title, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _fields(**groups: str) -> dict[str, Any]:
    kinds = {"text": ctypes.c_char * 96, "small": ctypes.c_char * 32, "real": ctypes.c_double, "whole": ctypes.c_int64}
    return {field: kinds[group.split("_")[0]] for group, names in groups.items() for field in names.split()}


_Step = _structure("Step", **_fields(real="time_s watts joules"))
_Rule = _structure("Rule", function=ctypes.c_char * 64, **_fields(whole="device code", real="from_s until_s"))
_Process = _structure("Process", **_fields(whole="pid memory_bytes"))
DeviceState = _structure(
    "DeviceState",
    **_fields(
        text="name uuid", small="vbios serial", whole_a="architecture major minor seed",
        real_a="origin_s idle_w demand_w",
        real_b="period_s window_s average_window_s lag_s phase_s gain offset_w noise_w module_extra_w",
        whole_b="usage_is_average",
        real_c="counter_period_s counter_phase_s counter_start_j counter_wrap_j counter_gain reset_s stall_from_s "
        "stall_until_s sample_period_s",
        whole_c="sample_count may_set limit_mw default_limit_mw min_limit_mw max_limit_mw max_sm_mhz min_sm_mhz "
        "memory_mhz locked_low_mhz locked_high_mhz sm_override_mhz reasons temperature_c utilisation "
        "memory_utilisation pcie_tx_kbs pcie_rx_kbs",
    ),
    violation_ns=ctypes.c_int64 * POLICIES,
    violation_since_s=ctypes.c_double * POLICIES,
    **_fields(whole="mig mig_slices memory_bytes memory_used_bytes process_count"),
    processes=_Process * PROCESSES,
    **_fields(whole="calls step_count"),
    steps=_Step * STEPS,
)  # fmt: skip
"""The mirror of ``Device`` in nvml/sim.h, which says what the fields are."""

_State = _structure(
    "State", **_fields(whole="magic device_count rule_count", real="read_delay_s"),
    driver=ctypes.c_char * 80, nvml=ctypes.c_char * 80, rules=_Rule * RULES, devices=DeviceState * DEVICES,
)  # fmt: skip

_COMMON: dict[str, Any] = {
    "vbios": b"96.00.74.00.1A", "idle_w": 80.0, "demand_w": 80.0, "period_s": 0.1, "window_s": 0.025,
    "average_window_s": 1.0, "lag_s": 0.01, "gain": 1.0, "counter_period_s": 0.1, "counter_start_j": 123456.789,
    "counter_gain": 1.0, "sample_period_s": 0.1, "sample_count": 120, "default_limit_mw": 700_000,
    "min_limit_mw": 200_000, "max_limit_mw": 700_000, "max_sm_mhz": 1980, "min_sm_mhz": 345, "memory_mhz": 2619,
    "temperature_c": 45, "utilisation": -1, "memory_utilisation": -1, "pcie_tx_kbs": 1200, "pcie_rx_kbs": 3400,
    "memory_bytes": 80 << 30, "memory_used_bytes": 1 << 30,
}  # fmt: skip
_OLD_FIELDS = {"field:185": NOT_SUPPORTED, "field:186": NOT_SUPPORTED}
PARTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "h100": ({"name": b"NVIDIA H100 80GB HBM3", "architecture": 9, "major": 9, "usage_is_average": 1}, {}),
    "h200": (
        {"name": b"NVIDIA H200", "architecture": 9, "major": 9, "usage_is_average": 1, "memory_bytes": 141 << 30}, {},
    ),
    "gh200": (
        {"name": b"NVIDIA GH200 480GB", "architecture": 9, "major": 9, "usage_is_average": 1, "window_s": 0.02,
         "module_extra_w": 120.0}, {},
    ),
    "a100": (
        {"name": b"NVIDIA A100-SXM4-80GB", "architecture": 7, "major": 8, "default_limit_mw": 400_000,
         "min_limit_mw": 100_000, "max_limit_mw": 400_000, "max_sm_mhz": 1410, "memory_mhz": 1593}, {},
    ),
    "rtx3090": (
        {"name": b"NVIDIA GeForce RTX 3090", "architecture": 7, "major": 8, "minor": 6, "window_s": 0.1,
         "default_limit_mw": 350_000, "max_limit_mw": 350_000, "min_limit_mw": 100_000, "memory_bytes": 24 << 30},
        _OLD_FIELDS,
    ),
    "v100": (
        {"name": b"Tesla V100-SXM2-32GB", "architecture": 5, "major": 7, "period_s": 0.02, "window_s": 0.01,
         "counter_period_s": 0.02, "sample_period_s": 0.02, "default_limit_mw": 300_000, "max_limit_mw": 300_000,
         "min_limit_mw": 150_000, "memory_bytes": 32 << 30}, _OLD_FIELDS,
    ),
    "p100": (
        {"name": b"Tesla P100-SXM2-16GB", "architecture": 4, "major": 6, "period_s": 0.02, "window_s": 0.01,
         "sample_period_s": 0.02, "default_limit_mw": 300_000, "max_limit_mw": 300_000, "min_limit_mw": 150_000,
         "memory_bytes": 16 << 30},
        _OLD_FIELDS | {"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED, "field:83": NOT_SUPPORTED},
    ),
}  # fmt: skip
"""Fields and missing functions by part; the sensors read as the table of the method says."""


def compiler() -> str | None:
    """The C compiler, or ``None``."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compile the library into a folder.

    Raises:
        RuntimeError: the compiler refused; with what it said.
    """
    library = folder / "libnvidia-ml.so.1"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-Bsymbolic"]
    files = [str(SOURCES / "signal.c"), str(SOURCES / "nvml.c")]
    command = [compiler() or "cc", *options, "-o", str(library), *files, "-lm", "-lpthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"building the simulated NVML failed:\n{done.stderr}")
    return library


class SimulatedGpus:
    """A driver with up to eight GPUs in a folder of its own: the library and its state side by side."""

    def __init__(self, library: Path, folder: Path, part: str = "h100", count: int = 1, **fields: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shared_object = folder, folder / library.name
        shutil.copy(library, self.shared_object)
        with (folder / "state").open("w+b") as file:
            file.truncate(ctypes.sizeof(_State))
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self.state: Any = _State.from_buffer(self._map)
        self.state.magic, self.state.device_count = MAGIC, count
        self.state.driver, self.state.nvml = b"570.86.15", b"12.570.86.15"
        self._c = ctypes.CDLL(str(self.shared_object))
        self._c.sim_layout.restype = ctypes.c_int64
        sizes = [self._c.sim_layout(k) for k in range(3)]
        assert sizes == [ctypes.sizeof(t) for t in (_State, DeviceState, _Rule)], "sim.h and its mirror differ"
        self._c.sim_energy.restype = ctypes.c_double
        self._c.sim_energy.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_double]
        self._c.sim_step.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_double]
        self._c.sim_demand.argtypes = [ctypes.c_int, ctypes.c_double]
        self._c.sim_throttle.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        self.devices = [SimulatedGpu(self, self._c, self.state.devices[k], k) for k in range(count)]
        options, missing = PARTS[part]
        for gpu in self.devices:
            gpu.setup(_COMMON | options | fields)
        for function, code in missing.items():
            self.fail(function, code)
        self._followers: list[tuple[threading.Event, threading.Thread]] = []

    def __getitem__(self, index: int) -> SimulatedGpu:
        return self.devices[index]

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that is to see this driver."""
        paths = [str(self.folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)}

    def python(self, code: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a piece of Python in a process that sees this driver."""
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, check=False, cwd="/", env=self.env,
        )  # fmt: skip

    def binding(self) -> ModuleType:
        """A fresh ``pynvml``, the real one, that has loaded this library."""
        found = PathFinder.find_spec("pynvml")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        before = sys.modules.get("pynvml")
        sys.modules["pynvml"] = module  # it looks itself up while it is loaded
        try:
            found.loader.exec_module(module)
        finally:
            sys.modules.pop("pynvml")
            if before is not None:
                sys.modules["pynvml"] = before
        module.nvmlLib = ctypes.CDLL(str(self.shared_object))
        return module

    def install(self, monkeypatch: Any) -> ModuleType:
        """Make ``import pynvml`` give :meth:`binding` in this process, until the test ends."""
        module = self.binding()
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    def fail(
        self, function: str, code: int, *, device: int = -1, from_s: float = 0.0, until_s: float = math.inf
    ) -> None:
        """A function gives an error from one time to another; see the module's docstring."""
        n = self.state.rule_count
        assert n < RULES, "too many rules"
        rule = self.state.rules[n]
        rule.function, rule.device, rule.code = function.encode(), device, code
        rule.from_s, rule.until_s = from_s, until_s
        self.state.rule_count = n + 1

    def heal(self) -> None:
        """No function fails any more, those missing on the part included."""
        self.state.rule_count = 0

    def follow(self, pids: Callable[[], Iterable[int]], device: int = 0, every_s: float = 0.005) -> None:
        """Switch the load with the processor time of these processes: on while they keep half a core busy."""
        stop = threading.Event()

        def watch() -> None:
            last, at = _cpu_ns(pids()), time.perf_counter()
            while not stop.wait(every_s):
                used, now = _cpu_ns(pids()), time.perf_counter()
                self[device].load(on=(used - last) > 0.5e9 * (now - at))
                last, at = used, now
            self[device].load(on=False)

        thread = threading.Thread(target=watch, daemon=True)
        self._followers.append((stop, thread))
        thread.start()

    def close(self) -> None:
        """End what follows a process."""
        for stop, thread in self._followers:
            stop.set()
            thread.join()
        self._followers.clear()


class SimulatedGpu:
    """One GPU; ``state`` holds every figure."""

    def __init__(self, gpus: SimulatedGpus, library: Any, state: Any, index: int) -> None:
        self.gpus, self.state, self.index, self._c = gpus, state, index, library
        self.active_w = 500.0

    def setup(self, fields: Mapping[str, Any]) -> None:
        """Fill in the part; power is idle since long before now."""
        uuid = f"GPU-5117c0de-0000-4000-8000-{self.index:012d}".encode()
        for field, value in {"uuid": uuid, "serial": b"0", "seed": self.index + 1, **fields}.items():
            setattr(self.state, field, value)
        self.state.limit_mw = fields.get("limit_mw", self.state.default_limit_mw)
        self.state.origin_s = time.perf_counter() - 100.0
        self.state.phase_s = fields.get("phase_s", 0.37 * self.state.period_s * (1 + self.index % 2))
        self.state.counter_phase_s = fields.get("counter_phase_s", 0.61 * self.state.counter_period_s)
        self._ok(self._c.sim_step(self.index, self.state.origin_s - 1e4, self.state.idle_w))

    @property
    def uuid(self) -> str:
        return self.state.uuid.decode()

    def demand(self, watts: float) -> None:
        """The load wants so much from now on."""
        self._ok(self._c.sim_demand(self.index, watts))

    def load(self, *, on: bool | None = None) -> contextlib.AbstractContextManager[None]:
        """Switch the load (at once); without ``on``, a context that has it on."""
        if on is not None:
            self.demand(self.active_w if on else self.state.idle_w)
            return contextlib.nullcontext()
        return self._loaded()

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[None]:
        self.load(on=True)
        try:
            yield
        finally:
            self.load(on=False)

    def step(self, at_s: float, watts: float) -> None:
        """True power from a time on, not before the last step."""
        self._ok(self._c.sim_step(self.index, at_s, watts))

    def square(self, from_s: float, until_s: float, period_s: float, high_w: float = 500.0) -> None:
        """Alternates between that and idle power, half and half, and stays idle."""
        for k in range(round((until_s - from_s) / period_s)):
            self.step(from_s + k * period_s, high_w)
            self.step(from_s + (k + 0.5) * period_s, self.state.idle_w)

    def energy(self, from_s: float, until_s: float) -> float:
        """True joules between two times."""
        return float(self._c.sim_energy(self.index, from_s, until_s))

    def power(self) -> float:
        """True watts now: of the last step that is not in the future."""
        now = time.perf_counter()
        return next(s.watts for s in reversed(self.state.steps[: self.state.step_count]) if s.time_s <= now)

    def lose(self, at_s: float = 0.0) -> None:
        """Every call of this GPU says that it is lost, from then on."""
        self.gpus.fail("*", GPU_IS_LOST, device=self.index, from_s=at_s)

    def reset_counter(self) -> None:
        """The energy counter starts again from nothing."""
        self.state.reset_s = time.perf_counter()

    def stall_counter(self, seconds: float = 1e9) -> None:
        """The energy counter stands still for that long."""
        now = time.perf_counter()
        self.state.stall_from_s, self.state.stall_until_s = now, now + seconds

    def throttle(self, reasons: int, policy: int = -1) -> None:
        """Clocks event reasons show up, and the violation time of a policy runs."""
        self._c.sim_throttle(self.index, reasons, policy, 1)

    def unthrottle(self, reasons: int, policy: int = -1) -> None:
        """The opposite of :meth:`throttle`."""
        self._c.sim_throttle(self.index, reasons, policy, 0)

    def processes(self, memory_by_pid: Mapping[int, int]) -> None:
        """Who computes on it, and with how much memory."""
        for entry, (pid, memory) in zip(self.state.processes, memory_by_pid.items(), strict=False):
            entry.pid, entry.memory_bytes = pid, memory
        self.state.process_count = len(memory_by_pid)

    def _ok(self, code: int) -> None:
        if code:
            raise ValueError(f"the simulated GPU refused with {code}: too many steps, or a step before the last one")


def _cpu_ns(pids: Iterable[int]) -> int:
    """Nanoseconds of processor time of all threads (Documentation/scheduler/sched-stats.rst)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                total += int(task.read_text().split()[0])
    return total
