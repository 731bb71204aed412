"""Whole runs beside a simulated GPU: the real program, worker and pynvml; CPU kernels stand for the load.

A start-up file on PYTHONPATH, which exists in these tests only, makes the worker look at the simulated driver although
its device is the CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from wattline.record import Record
from wattline.run import Run
from wattline.trace import read_traces

pytest.importorskip("torch")

HOOK = '''
import wattline.collectors.energy as energy
import wattline.collectors.nvml_device as nvml_device
import wattline.collectors.telemetry as telemetry

_sensor, _telemetry, _identify = energy.find_energy_sensor, telemetry.telemetry_for, nvml_device.identify
energy.find_energy_sensor = lambda kind, *a, **k: _sensor("cuda")
telemetry.telemetry_for = lambda kind, *a, **k: _telemetry("cuda")
nvml_device.identify = lambda kind, *a, **k: _identify("cuda")
'''
QUICK = (
    "--measure", "time_limit_s=0.1", "--measure", "min_time_s=0.05", "--measure", "warmup_limit_s=0.05",
    "--no-fit", "--no-report", "--device", "cpu",
)  # fmt: skip


class Bench:
    """Runs the program beside one simulated GPU."""

    def __init__(self, gpus: Any, folder: Path) -> None:
        self.gpus, self.out = gpus, folder / "run"
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        self.env = {
            **gpus.env,
            "PYTHONPATH": os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.env.pop("CUDA_VISIBLE_DEVICES", None)
        self.process: subprocess.Popen[str] | None = None
        gpus.follow(self._pids)

    def _pids(self) -> list[int]:
        return [child.pid for child in self.children()]

    def start(self, *arguments: str, window_s: float = 0.4) -> subprocess.Popen[str]:
        """Begin a run of small products."""
        command = [sys.executable, "-m", "wattline.cli", "bench", "--out", str(self.out), *QUICK, *arguments]
        command += ["--measure", f"energy_window_s={window_s}"]
        self.process = subprocess.Popen(
            command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )
        return self.process

    def resume(self) -> subprocess.Popen[str]:
        """Go on with it."""
        command = [sys.executable, "-m", "wattline.cli", "bench", "--resume", "--out", str(self.out)]
        self.process = subprocess.Popen(
            [*command, "--no-fit", "--no-report"],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
        )  # fmt: skip
        return self.process

    def children(self) -> list[psutil.Process]:
        """Processes that the run has started."""
        if self.process is None or self.process.poll() is not None:
            return []
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.Error:
            return []

    def worker_pid(self) -> int | None:
        """Of the worker, where there is one."""
        for child in self.children():
            with contextlib.suppress(psutil.Error):
                if "wattline.suites.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return int(child.pid)
        return None

    def finish(self, timeout: float = 120) -> tuple[int, str]:
        """Exit code and output."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Until something is so; fails when it never is."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    def records(self) -> list[Record]:
        """Those written so far."""
        path = self.out / "records.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [Record.from_json(line) for line in lines if line.endswith("\n")]


@pytest.fixture
def bench(simulated_gpus: Callable[..., Any], tmp_path: Path) -> Iterator[Bench]:
    made = Bench(simulated_gpus("h100", may_set=1), tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


SHAPES = ("gemm.dense", "--set", "m=192,256", "--set", "n=256", "--set", "k=256")


def test_records_carry_joules_and_the_run_its_trace(bench: Bench, tmp_path: Path) -> None:
    bench.start(*SHAPES, window_s=1.5)
    code, output = bench.finish()
    assert code == 0, output
    # The simulated board draws power while the worker computes: one that waits for a processor draws less.
    least = 350 if os.getloadavg()[0] < (os.cpu_count() or 1) else 80
    records = bench.records()
    assert [record.status for record in records] == ["ok", "ok"]
    for record in records:
        energy = record.measurement.energy if record.measurement else None
        assert energy is not None, output
        # The load draws 500 W (less while the host waits); the interval holds the gain of an uncalibrated board.
        assert least < energy.power_w < 530
        assert 0 < energy.energy_lo_j < energy.energy_j < energy.energy_hi_j
        assert energy.source == "nvml: total energy counter (gpu)"
        assert energy.scope == "gpu"
        assert {"gain", "quantisation"} <= set(energy.budget)
        assert energy.idle_w is not None
        assert 70 < energy.idle_w < 200
        assert record.measurement is not None
        assert record.measurement.telemetry["gpu_power_limit_w"] == pytest.approx(700)
    run = Run(bench.out)
    assert run.manifest["energy"]["available"] is True
    assert set(run.manifest["energy"]["levels"]) >= {"idle", "resident"}
    overhead = run.manifest["sampler_overhead"]
    assert overhead["pairs"] == 8
    assert overhead["ratio_lo"] <= overhead["ratio"] <= overhead["ratio_hi"]
    traces = list(read_traces(bench.out))
    assert {trace.key for trace in traces} == {record.case.key for record in records}
    for trace in traces:
        assert {"timing", "energy"} <= {band.label for band in trace.bands}
        assert any(series.unit == "W" for series in trace.series.values())
    command = [sys.executable, "-m", "wattline.cli", "export", str(bench.out), "--format", "perfetto"]
    exported = subprocess.run(
        [*command, "--out", str(tmp_path / "trace.json")], env=bench.env, capture_output=True, text=True, check=False
    )
    assert exported.returncode == 0, exported.stderr
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert any("timing" in str(name) for name in names)
    subprocess.run(
        [sys.executable, "-m", "wattline.cli", "report", str(bench.out)], env=bench.env, check=True, capture_output=True
    )
    html = (bench.out / "report.html").read_text()
    assert all(f'id="{name}"' in html for name in ("power-run", "power-case", "energy-time", "energy-levels", "sensor"))
    assert all(record.case.key in html for record in records)


def test_a_gpu_pulled_in_the_middle_loses_no_finished_record(bench: Bench) -> None:
    bench.start("gemm.dense", "--set", "m=32,64,96,128,192,256", "--set", "n=256", "--set", "k=256")
    bench.wait_for(lambda: len(bench.records()) >= 1)
    before = [record.to_json() for record in bench.records()]
    bench.gpus[0].lose()
    bench.wait_for(lambda: len(bench.records()) > len(before) + 1)
    assert bench.process is not None
    bench.process.send_signal(signal.SIGINT)
    code, output = bench.finish()
    assert code == 130, output
    records = bench.records()
    assert [record.to_json() for record in records[: len(before)]] == before
    assert records[0].measurement is not None
    assert records[0].measurement.energy is not None
    last = records[-1].measurement
    assert last is not None
    assert last.stats.median_s > 0  # the kernel has run: its time stands
    assert last.energy is None
    assert "energy_refused" in records[-1].flags
    messages = [flag.message for flag in last.flags]
    assert any("fallen off the bus" in message for message in messages), messages
    assert len(records) < 6
    # The machine was mended: what is missing is measured, with joules, and nothing else is touched.
    bench.gpus.heal()
    kept = [record.to_json() for record in records]
    bench.resume()
    code, output = bench.finish()
    assert code == 0, output
    records = bench.records()
    assert len(records) == 6
    assert [record.to_json() for record in records[: len(kept)]] == kept
    assert all(r.measurement is not None and r.measurement.energy is not None for r in records[len(kept) :]), output


def test_caps_are_held_recorded_and_put_back_whatever_ends_the_run(bench: Bench) -> None:
    """Killed, resumed, its worker killed, stopped by SIGTERM, resumed to the end: one run, as bad days have it."""
    gpu = bench.gpus[0]

    def limit_w() -> float:
        return float(gpu.state.limit_mw) / 1e3

    process = bench.start("gemm.dense", "--set", "m=256", *SHAPES[3:], "--power-limits", "500,400,default,100")
    bench.wait_for(lambda: limit_w() < 700)
    process.kill()
    bench.finish()
    bench.wait_for(lambda: limit_w() == 700, 30)  # by the watchdog

    process = bench.resume()
    bench.wait_for(lambda: limit_w() < 700)
    capped_w = limit_w()
    worker = bench.worker_pid()
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    bench.wait_for(lambda: bench.worker_pid() not in (None, worker))
    assert limit_w() == capped_w  # a worker's death changes nothing about the cap
    process.send_signal(signal.SIGTERM)
    code, output = bench.finish()
    assert code == 130, output
    assert "trying the case again" in output
    assert limit_w() == 700
    done = len(bench.records())

    bench.resume()
    code, output = bench.finish()
    assert code == 0, output
    assert limit_w() == 700
    records = bench.records()
    assert 0 < done < len(records) == 4
    assert {record.status for record in records if record.case.power_limit_w != 100} == {"ok"}
    for record in records:
        measured, asked_w = record.measurement, record.case.power_limit_w
        if asked_w == 100:
            assert record.status == "unsupported"
            assert record.reason is not None
            assert "200 to 700 W" in record.reason.message
            continue
        assert measured is not None
        assert measured.facts.get("held_power_limit_w") == asked_w
        assert measured.telemetry["gpu_power_limit_w"] == pytest.approx(asked_w or 700)
        assert measured.energy is not None
        # The load would draw 500 W. On a busy machine few readings fall into the window, and the interval is wide.
        least_w = measured.energy.power_w * measured.energy.energy_lo_j / measured.energy.energy_j
        assert least_w < 1.06 * min(asked_w or 700, 500)
    manifest = Run(bench.out).manifest
    assert manifest["caps"]["reason"] is None
    assert manifest["caps"]["found"]["power_limit_w"] == 700


def test_without_the_right_caps_are_left_alone_and_the_rest_is_measured(bench: Bench) -> None:
    bench.gpus[0].state.may_set = 0
    bench.start(*SHAPES[:1], "--set", "m=256", *SHAPES[3:], "--power-limits", "400,default")
    code, output = bench.finish()
    assert code == 0, output
    assert "may not change the GPU's power limit and clocks" in output
    assert "nvidia-smi -pl" in output
    records = {record.case.power_limit_w: record for record in bench.records()}
    assert {limit: record.status for limit, record in records.items()} == {400.0: "unsupported", None: "ok"}
    assert records[400.0].reason is not None
    assert records[400.0].reason.code == "no_permission"
    assert bench.gpus[0].state.limit_mw == 700_000
