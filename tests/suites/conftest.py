"""Fixtures: a third-party plug-in with workloads that misbehave, and plans of them.

The plug-in is a real one, an entry point in a folder on PYTHONPATH, because the workers that meet its faults are
real processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wattline.case import Case
from wattline.run import PlannedCase
from wattline.suites.plan import Plan
from wattline.suites.settings import MeasureSettings

FAULTY = '''
"""Workloads that go wrong in every way that a kernel can."""

import os
import signal
import time
from pathlib import Path

from wattline.errors import DeviceError
from wattline.params import Int, Params
from wattline.suites.registry import workload
from wattline.suites.workload import Kernel, Workload
from wattline.work import Work

MARKS = Path(os.environ["FAULTY_MARKS"])


def kernel(action=lambda: None, value=1.0):
    import torch

    out = torch.empty(4)

    def call():
        action()
        return out.fill_(value)

    return Kernel(call, {}, out)


class Base(Workload):
    """A kernel of the tests."""

    params = Params(i=Int(1), ms=Int(1, lo=0))

    def work(self, p):
        return Work(flops={"fp32": 1.0}, bytes_written={"device": 16.0})

    def footprint(self, p):
        return 16 * 2**20

    def build(self, p, ctx):
        return kernel(self.action(p))

    def action(self, p):
        return lambda: time.sleep(1e-3 * p["ms"])

    def check(self, p, kernel, result):
        import torch

        return float(torch.linalg.vector_norm(result - 1) / 2), 1e-6, "full"


@workload("faulty.steady")
class Steady(Base):
    """Sleeps, and is right."""


@workload("faulty.noting")
class Noting(Base):
    """Leaves a mark when it begins, then sleeps: tests wait for the mark before they kill."""

    def build(self, p, ctx):
        (MARKS / f"began-{p['i']}").write_text(str(os.getpid()))
        return super().build(p, ctx)


@workload("faulty.hang")
class Hang(Base):
    """Never returns."""

    def action(self, p):
        return lambda: time.sleep(3600)


@workload("faulty.nan")
class Nan(Base):
    """Returns NaN."""

    def build(self, p, ctx):
        return kernel(value=float("nan"))


@workload("faulty.unwritten")
class Unwritten(Base):
    """Leaves its last element unwritten."""

    def build(self, p, ctx):
        import torch

        out = torch.empty(4)

        def call():
            out[:3] = 1.0
            return out

        return Kernel(call, {}, out)


@workload("faulty.crash")
class Crash(Base):
    """Dies of a segmentation fault."""

    def action(self, p):
        return lambda: os.kill(os.getpid(), signal.SIGSEGV)


@workload("faulty.crash_once")
class CrashOnce(Base):
    """Dies the first time only."""

    def action(self, p):
        mark = MARKS / f"crashed-{p['i']}"

        def act():
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return act


@workload("faulty.memory")
class Memory(Base):
    """Wants more memory than any machine has."""

    def build(self, p, ctx):
        import torch

        torch.empty(2**60)
        raise AssertionError("that must not fit")


@workload("faulty.sticky")
class Sticky(Base):
    """Breaks the device for its process."""

    def action(self, p):
        def act():
            raise DeviceError("the device is lost", sticky=True)

        return act


@workload("faulty.raises")
class Raises(Base):
    """Raises an ordinary error."""

    def action(self, p):
        def act():
            raise RuntimeError("no such luck")

        return act


@workload("faulty.chatty")
class Chatty(Base):
    """Prints to both streams, as libraries do."""

    def action(self, p):
        def act():
            os.write(1, b'{"kind":"record"}\\nnoise on stdout\\n')
            os.write(2, b"noise on stderr\\n")

        return act


@workload("faulty.impossible")
class Impossible(Base):
    """Claims more work than any device can do in the time."""

    def work(self, p):
        return Work(flops={"fp32": 1e18})
'''


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the plug-in as an installed distribution."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "faulty_suite.py").write_text(textwrap.dedent(FAULTY))
    info = folder / "faulty_suite-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-suite\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wattline.suites]\nfaulty = faulty_suite\n")
    return folder


@pytest.fixture
def plugin(plugin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plug-in active for the processes that a test starts; gives the folder for its marks."""
    marks = tmp_path / "marks"
    marks.mkdir()
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{plugin_folder}{os.pathsep}{old}" if old else str(plugin_folder))
    monkeypatch.setenv("FAULTY_MARKS", str(marks))
    return marks


QUICK = MeasureSettings(min_time_s=0.02, time_limit_s=0.05, warmup_limit_s=0.02, min_samples=3, deadline_s=5.0)


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """Makes a plan from names of faulty workloads (or whole cases), in the order given."""

    def make(*cases: str | Case, budget_s: float | None = None, settings: MeasureSettings = QUICK, ms: int = 1) -> Plan:
        planned = []
        for number, case in enumerate(cases, start=1):
            whole = (
                Case(f"faulty.{case}", "torch", {"i": number, "ms": ms}, regime="hot")
                if isinstance(case, str)
                else case
            )
            planned.append(PlannedCase(whole))
        return Plan(
            preset="test",
            cases=tuple(planned),
            refused=(),
            settings=settings,
            budget_s=budget_s,
            seed=0,
            arguments={},
            estimated_s=0.0,
            peak_bytes=0.0,
        )

    return make


@pytest.fixture
def interpreted() -> Callable[[str], str]:
    """Runs a program in a process of its own in which Triton interprets kernels; what it printed."""

    def run(program: str) -> str:
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """An empty folder on a file system that is not memory."""
    from wattline.suites.storage import place

    for folder in (str(tmp_path), os.getcwd()):
        if place.mount_of(folder).kind not in place.IN_MEMORY and place.why_not(folder, 2**26) is None:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".disk-") as own:
                yield own
            return
    pytest.skip("no folder on a disk")
