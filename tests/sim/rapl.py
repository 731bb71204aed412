"""A simulated powercap tree (RAPL) under a temporary root, which follows wall time and whose truth is known.

Through the fixture ``simulated_rapl``::

    rapl = simulated_rapl(packages=2, dram=True, psys=False, core=False, mmio=False, wrap_j=262143.328850)
    find_energy_sensor("cpu", rapl.root)         # rapl.root holds sys/class/powercap/intel-rapl:0/energy_uj ...
    with rapl.load(): ...                        # every package draws active_w; rapl.load(on=True) switches
    rapl.energy(start, end)                      # true joules of all packages between two times of perf_counter
    rapl.energy(start, end, "dram")              # of another kind of zone: package, dram, core, psys

As on a real machine the zones are folders below ``sys/devices/virtual/powercap`` and ``sys/class/powercap`` holds
links to them; ``intel-rapl`` itself is the control type and no zone; ``mmio=True`` adds ``intel-rapl-mmio:0``, a second
view of the first package that must not be counted twice. The counters are renewed about every millisecond by a thread,
in steps of 61 microjoules, and wrap at ``max_energy_range_uj``. ``rapl.freeze()`` stops them, ``rapl.thaw()`` goes on;
``rapl.hide()`` leaves links that lead nowhere, as container engines do. Without the thread: ``renew_s=None`` and
``rapl.renew()`` by hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattline_sim.sources import Waveform

QUANTUM_J = 2.0**-14  # the usual energy unit of MSR_RAPL_POWER_UNIT
DRAM_SHARE, CORE_SHARE = 0.15, 0.7
PSYS_EXTRA_W = 30.0
_WIDTH = 20


@dataclass
class _Zone:
    kind: str
    folder: Path
    scale: float
    extra_w: float
    start_j: float
    descriptor: int = -1


class SimulatedRapl:
    """The tree, its counters and the thread that renews them."""

    def __init__(
        self, root: Path, *, packages: int = 1, dram: bool = False, core: bool = False, psys: bool = False,
        mmio: bool = False, idle_w: float = 30.0, active_w: float = 150.0, wrap_j: float = 262143.328850,
        start_j: float | None = None, renew_s: float | None = 0.001,
    ) -> None:  # fmt: skip
        self.path, self.root = root, str(root)
        self.idle_w, self.active_w, self.wrap_j = idle_w, active_w, wrap_j
        self.truth = Waveform(idle_w)
        self.began_s = time.perf_counter()
        self.zones: list[_Zone] = []
        self._lock = threading.Lock()
        self._frozen_s: float | None = None
        start = 1000.0 if start_j is None else start_j
        self._control("intel-rapl")
        for k in range(packages):
            package = self._zone("package", f"package-{k}", f"intel-rapl:{k}", None, start=start + 7.0 * k)
            for j, (kind, share) in enumerate([("core", CORE_SHARE)] * core + [("dram", DRAM_SHARE)] * dram):
                self._zone(kind, kind, f"intel-rapl:{k}:{j}", package, scale=share, start=start)
        if psys:
            self._zone(
                "psys", "psys", f"intel-rapl:{packages}", None, scale=float(packages), extra_w=PSYS_EXTRA_W, start=start
            )
        if mmio:
            self._control("intel-rapl-mmio")
            self._zone("mmio", "package-0", "intel-rapl-mmio:0", None, start=start)
        self.renew()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if renew_s is not None:
            self._thread = threading.Thread(target=self._run, args=(renew_s,), daemon=True)
            self._thread.start()

    @property
    def _devices(self) -> Path:
        return self.path / "sys/devices/virtual/powercap"

    @property
    def _class(self) -> Path:
        return self.path / "sys/class/powercap"

    def _control(self, name: str) -> None:
        folder = self._devices / name
        folder.mkdir(parents=True)
        (folder / "enabled").write_text("1\n")
        self._link(folder)

    def _link(self, folder: Path) -> None:
        self._class.mkdir(parents=True, exist_ok=True)
        (self._class / folder.name).symlink_to(os.path.relpath(folder, self._class))

    def _zone(
        self, kind: str, name: str, folder_name: str, parent: _Zone | None, *, scale: float = 1.0,
        extra_w: float = 0.0, start: float = 0.0,
    ) -> _Zone:  # fmt: skip
        folder = (parent.folder if parent else self._devices / folder_name.partition(":")[0]) / folder_name
        folder.mkdir()
        files = {"name": name, "enabled": "1", "max_energy_range_uj": f"{self.wrap_j * 1e6:.0f}"}
        for file, text in files.items():
            (folder / file).write_text(text + "\n")
        self._link(folder)
        zone = _Zone(kind, folder, scale, extra_w, start)
        zone.descriptor = os.open(folder / "energy_uj", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444)
        self.zones.append(zone)
        return zone

    def renew(self) -> None:
        """Bring every counter up to now."""
        with self._lock:
            now = time.perf_counter() if self._frozen_s is None else self._frozen_s
            for zone in self.zones:
                joules = zone.start_j + self._energy(zone, self.began_s, now)
                micro = int(joules / QUANTUM_J) * QUANTUM_J % self.wrap_j * 1e6
                # Always as long, so that nobody reads half of an old number: line ends fill the rest.
                os.pwrite(zone.descriptor, f"{int(micro)}".ljust(_WIDTH, "\n").encode(), 0)

    def _run(self, renew_s: float) -> None:
        while not self._stop.wait(renew_s):
            self.renew()

    def _energy(self, zone: _Zone, from_s: float, until_s: float) -> float:
        return zone.scale * self.truth.energy(from_s, until_s) + zone.extra_w * (until_s - from_s)

    def energy(self, from_s: float, until_s: float, kind: str = "package") -> float:
        """True joules of all zones of that kind between two times."""
        with self._lock:
            return sum(self._energy(zone, from_s, until_s) for zone in self.zones if zone.kind == kind)

    def load(self, *, on: bool | None = None) -> contextlib.AbstractContextManager[None]:
        """Switch the load (at once); without ``on``, a context that has it on."""
        if on is None:
            return self._loaded()
        with self._lock:
            self.truth.step(time.perf_counter(), self.active_w if on else self.idle_w)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[None]:
        self.load(on=True)
        try:
            yield
        finally:
            self.load(on=False)

    def freeze(self) -> None:
        """The counters stand still."""
        self._frozen_s = time.perf_counter()

    def thaw(self) -> None:
        """The counters go on, with the energy of the time between."""
        self._frozen_s = None

    def hide(self) -> None:
        """Take the zones away and leave their links, as container engines do."""
        self.close()
        shutil.rmtree(self._devices)
        self._devices.mkdir()

    def close(self) -> None:
        """End the thread; the files stay."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for zone in self.zones:
            if zone.descriptor >= 0:
                os.close(zone.descriptor)
                zone.descriptor = -1
