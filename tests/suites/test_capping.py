"""Caps during a run, in this process: a simulated driver under the real pynvml, and the real watchdog."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.collectors.nvml_device import Identity, identify
from wattline.errors import DeviceError
from wattline.record import Record
from wattline.suites import capping
from wattline.suites.capping import Capping, unmet_caps
from wattline.suites.workload import Machine

FREE = Case("gemm.dense", "torch", {"m": 8})
NO_PERMISSION, GPU_IS_LOST, NOT_SUPPORTED, UNKNOWN = 4, 15, 3, 999


def capped(watts: float | None = None, hertz: float | None = None) -> Case:
    return Case("gemm.dense", "torch", {"m": 8}, power_limit_w=watts, clock_hz=hertz)


class Bench:
    """A simulated GPU and the notes about it."""

    def __init__(self, gpus: Any) -> None:
        self.gpus, self.gpu = gpus, gpus[0]
        self.notes: list[str] = []
        self.capping = Capping(self.notes.append)

    @property
    def limit_w(self) -> float:
        return float(self.gpu.state.limit_mw) / 1e3

    @property
    def locked_mhz(self) -> int:
        return int(self.gpu.state.locked_high_mhz)

    def begin(self, *cases: Case) -> Any:
        return self.capping.begin(asdict(identify("cuda")), cases)


@pytest.fixture
def bench(simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    gpus = simulated_gpus("h200", count=2, may_set=1)
    gpus.install(monkeypatch)
    monkeypatch.setenv("LD_LIBRARY_PATH", gpus.env["LD_LIBRARY_PATH"])  # the watchdog's
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(capping, "SETTLE_S", 0.0)
    bench = Bench(gpus)
    yield bench
    bench.gpus.heal()
    bench.capping.__exit__(None, None, None)


def refused(answer: tuple[str, Any] | None) -> tuple[str, str]:
    assert answer is not None
    return answer[0], answer[1].code


def test_without_capped_cases_nothing_is_touched(bench: Bench) -> None:
    calls = bench.gpu.state.calls
    with bench.capping:
        assert bench.capping.begin({"gpu": bench.gpu.uuid, "uuid": "", "reason": None}, [FREE, FREE]) is None
        assert bench.capping.hold(FREE) is None
    assert bench.gpu.state.calls == calls
    assert bench.notes == []


def test_each_case_is_held_to_what_it_asks_for(bench: Bench, make_record: Callable[..., Record]) -> None:
    with bench.capping:
        kept = bench.begin(FREE, capped(500), capped(None, 1.4e9))
        assert kept["reason"] is None
        assert kept["found"]["power_limit_w"] == 700
        assert "2 cases with caps are measured" in bench.notes[0]
        assert "700 W" in bench.notes[0]
        assert bench.capping.hold(FREE) is None
        assert bench.limit_w == 700
        assert bench.capping.hold(capped(500)) is None
        assert (bench.limit_w, bench.locked_mhz) == (500, 0)
        held = bench.capping.stamp(make_record(case=capped(500)))
        assert held.measurement is not None
        assert held.measurement.facts["held_power_limit_w"] == 500
        assert "held_clock_hz" not in held.measurement.facts
        assert held.flags == ()
        assert bench.capping.hold(capped(None, 1.4e9)) is None
        assert bench.limit_w == 700
        assert bench.locked_mhz > 0
        locked = bench.capping.stamp(make_record(case=capped(None, 1.4e9)))
        assert locked.measurement is not None
        assert locked.measurement.facts["held_clock_hz"] == bench.locked_mhz * 1e6
        assert bench.capping.hold(FREE) is None
        assert (bench.limit_w, bench.locked_mhz) == (700, 0)
        free = make_record()
        assert bench.capping.stamp(free) == free
        assert bench.capping.hold(capped(400)) is None
    assert bench.limit_w == 700
    bench.capping.check_put_back()


def test_out_of_range_and_missing_rights_cost_their_cases_only(bench: Bench) -> None:
    with bench.capping:
        bench.begin(capped(100))
        assert bench.capping.hold(capped(500)) is None
        status, reason = bench.capping.hold(capped(100)) or ("", None)
        assert status == "unsupported"
        assert reason is not None
        assert reason.code == "cap_out_of_range"
        assert "200 to 700 W" in reason.message
        assert bench.capping.hold(FREE) is None
        assert bench.limit_w == 700
    other = Bench(bench.gpus)
    bench.gpu.state.may_set = 0
    with other.capping:
        other.begin(capped(500), FREE)
        assert refused(other.capping.hold(capped(500))) == ("unsupported", "no_permission")
        assert other.capping.hold(FREE) is None
    assert "sudo nvidia-smi -pl" in other.notes[0]
    assert "the others are measured" in other.notes[0]


def test_clocks_that_are_refused_leave_nothing_to_put_back(bench: Bench, tmp_path: Path) -> None:
    """The limit may be set and the clocks not: then the limit goes back, and nobody tries to unlock the clocks."""
    bench.gpus.fail("nvmlDeviceSetGpuLockedClocks", NO_PERMISSION)
    bench.gpus.fail("nvmlDeviceResetGpuLockedClocks", NO_PERMISSION)
    with bench.capping:
        bench.begin(capped(500, 1.4e9))
        assert refused(bench.capping.hold(capped(500, 1.4e9))) == ("unsupported", "no_permission")
        journal = next((tmp_path / "state/wattline").glob("caps-*.json")).read_text()
        assert '"reset_clocks": false' in journal
        assert bench.capping.hold(FREE) is None
        assert bench.limit_w == 700
        assert bench.capping.hold(capped(400)) is None
    assert bench.limit_w == 700
    bench.capping.check_put_back()


def test_a_cap_that_cannot_be_lifted_lets_no_case_pass_as_uncapped(bench: Bench) -> None:
    with bench.capping:
        bench.begin(capped(500), FREE)
        assert bench.capping.hold(capped(500)) is None
        bench.gpus.fail("nvmlDeviceSetPowerManagementLimit", UNKNOWN)
        assert refused(bench.capping.hold(FREE)) == ("failed", "cap_not_lifted")
        assert refused(bench.capping.hold(FREE)) == ("failed", "cap_not_lifted")  # not only the first
        assert refused(bench.capping.hold(capped(400)))[0] == "failed"
        bench.gpus.heal()
        assert bench.capping.hold(FREE) is None
        assert bench.limit_w == 700


def test_what_cannot_be_put_back_is_raised_once_all_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattline.collectors.energy.caps import GpuCaps

    monkeypatch.setattr(GpuCaps, "restore", lambda self: (_ for _ in ()).throw(DeviceError("not put back")))
    with bench.capping:
        bench.begin(capped(500))
        assert bench.capping.hold(capped(500)) is None
    with pytest.raises(DeviceError, match="not put back"):
        bench.capping.check_put_back()
    assert bench.limit_w == 700  # the watchdog did it


def test_a_limit_that_others_move_flags_the_record(bench: Bench, make_record: Callable[..., Record]) -> None:
    with bench.capping:
        bench.begin(capped(500))
        assert bench.capping.hold(capped(500)) is None
        bench.gpu.state.limit_mw = 650_000
        moved = bench.capping.stamp(make_record(case=capped(500)))
        assert moved.flags == ("cap_not_held",)
        assert not moved.valid
        assert moved.measurement is not None
        assert "from 500 W to 650" in moved.measurement.flags[0].message
        assert bench.capping.hold(capped(500)) is None  # the same cap again: it is set anew
        assert bench.limit_w == 500
        assert bench.capping.stamp(make_record(case=capped(500))).flags == ()


def test_a_gpu_lost_under_a_cap(bench: Bench, make_record: Callable[..., Record]) -> None:
    with bench.capping:
        bench.begin(capped(500))
        assert bench.capping.hold(capped(500)) is None
        bench.gpu.lose()
        lost = bench.capping.stamp(make_record(case=capped(500)))
        assert lost.flags == ("cap_not_held",)
        assert refused(bench.capping.hold(capped(400))) == ("failed", "device_error")
        assert refused(bench.capping.hold(FREE)) == ("failed", "cap_not_lifted")
        bench.gpus.heal()
    assert bench.limit_w == 700


def test_two_runs_do_not_undo_each_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattline.collectors.energy import caps_watchdog

    other = Bench(bench.gpus)
    monkeypatch.setattr(caps_watchdog, "LOCK_WAIT_S", 0.1)
    with bench.capping, other.capping:
        bench.begin(capped(500))
        assert bench.capping.hold(capped(500)) is None
        other.begin(capped(400))
        assert refused(other.capping.hold(capped(400))) == ("unsupported", "caps_busy")
        assert bench.limit_w == 500


def test_devices_whose_caps_are_out_of_reach_say_why(bench: Bench) -> None:
    processor = identify("cpu")
    assert processor.reason is not None
    assert "the processor" in processor.reason.message
    with bench.capping:
        bench.capping.begin(asdict(processor), [capped(500), FREE])
        assert refused(bench.capping.hold(capped(500))) == ("unsupported", "no_caps")
        assert bench.capping.hold(FREE) is None
    xpu = identify("xpu").reason
    assert xpu is not None
    assert "xpu" in xpu.message
    assert unmet_caps(FREE, Machine("cpu")) is None
    for machine, word in ((Machine("cpu"), "processor"), (Machine("cuda", hip=True), "AMD"), (Machine("xpu"), "xpu")):
        reason = unmet_caps(capped(500), machine)
        assert reason is not None
        assert word in reason.message
    assert unmet_caps(capped(500), Machine("cuda")) is None


def test_the_gpu_is_named_by_its_uuid(simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = simulated_gpus("h100", count=3)
    binding = gpus.binding()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert identify("cuda", 1, binding=binding) == Identity(gpus[1].uuid, gpus[1].uuid)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert identify("cuda", 0, binding=binding).gpu == gpus[2].uuid
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{gpus[1].uuid}")
    assert identify("cuda", 0, binding=binding).uuid == gpus[1].uuid
    gpus[1].lose()
    lost = identify("cuda", 0, binding=binding)
    assert (lost.uuid, lost.reason and lost.reason.code) == ("", "no_nvml")


def test_a_part_of_a_gpu_has_no_caps_of_its_own(
    simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = simulated_gpus("h100", mig=1, mig_slices=2)
    binding = gpus.binding()
    binding.nvmlInit()
    handle = binding.nvmlDeviceGetMigDeviceHandleByIndex(binding.nvmlDeviceGetHandleByIndex(0), 1)
    part, whole = binding.nvmlDeviceGetUUID(handle), binding.nvmlDeviceGetHandleByUUID
    binding.nvmlDeviceGetHandleByUUID = lambda name: handle if name == part else whole(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", part)
    found = identify("cuda", 0, binding=binding)
    assert (found.uuid, found.gpu) == (part, gpus[0].uuid)
    assert found.reason is not None
    assert found.reason.code == "mig"


def test_sensor_and_telemetry_are_those_of_the_gpu_that_computes(
    simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wattline.collectors.energy import find_energy_sensor
    from wattline.collectors.telemetry import telemetry_for
    from wattline.suites.worker import _watches

    gpus = simulated_gpus("h100", count=2)
    gpus.install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus[1].state.temperature_c = 77
    first, second = (find_energy_sensor("cuda", index=0, uuid=uuid) for uuid in ("", gpus[1].uuid))
    assert (_watches(first, gpus[0].uuid), _watches(first, gpus[1].uuid)) == (True, False)
    assert _watches(second, gpus[1].uuid)
    telemetry = telemetry_for("cuda", 0, uuid=gpus[1].uuid)
    with telemetry:
        pass
    assert telemetry.result.means["gpu_temperature_c"] == 77
    for opened in (first, second, telemetry):
        opened.close()


def test_a_run_does_not_go_on_with_another_gpu(tmp_path: Path) -> None:
    from wattline.run import RunWriter
    from wattline.suites.runner import Observer, _Runner
    from wattline.suites.settings import MeasureSettings

    manifest = {"plan": {"settings": MeasureSettings().to_dict(), "seed": 0}}
    with RunWriter.create(tmp_path / "run", manifest, []) as writer:
        one = _Runner(writer, Observer(), None)
        first, other, unknown = ({"gpu": asdict(Identity(uuid, uuid))} for uuid in ("GPU-1", "GPU-2", ""))
        assert one._same_gpu(first) is first
        assert one._same_gpu(unknown) is unknown  # NVML may be silent for a while
        with pytest.raises(DeviceError, match="another GPU") as caught:
            one._same_gpu(other)
        assert "GPU-2 has taken the place of GPU-1" in caught.value.why
