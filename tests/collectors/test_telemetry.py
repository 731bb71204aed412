"""Telemetry: hand-worked ticks on a fake host, the rules of each flag, and the real machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from wattline.collectors import counters, host
from wattline.collectors.telemetry import (
    HostTelemetry,
    NullTelemetry,
    Series,
    Telemetry,
    TelemetryResult,
    telemetry_for,
)
from wattline.errors import SensorError
from wattline.record import FLAGS

PID = 100


def watch(h, clock, after, *, span_s=1.0, **options) -> TelemetryResult:
    """Telemetry over ``span_s`` in which ``after`` changes the fake host."""
    telemetry = HostTelemetry(h.root, [PID], clock=clock, **options)
    clock.now = 10.0
    telemetry.start()
    after()
    clock.now = 10.0 + span_s
    return telemetry.stop()


def codes(result: TelemetryResult) -> list[str]:
    assert all(flag.code in FLAGS and flag.message for flag in result.flags)
    return [flag.code for flag in result.flags]


def test_shares_by_hand(fake_host, clock):
    # One second of 4 processors is 400 ticks: 200 ours, 100 of others, 40 stolen, 10 interrupts, 50 idle.
    fake_host.process(PID, 1000)
    fake_host.stat(user=5000, idle=1000)

    def after():
        fake_host.process(PID, 1200)
        fake_host.stat(user=5300, idle=1050, steal=40, irq=10)

    result = watch(fake_host, clock, after)
    assert result.means["foreign_cpu_share"] == pytest.approx(0.25)
    assert result.means["foreign_cores"] == pytest.approx(1.0)
    assert result.means["own_cores"] == pytest.approx(2.0)
    assert result.means["steal_share"] == pytest.approx(0.10)
    assert result.means["interrupt_share"] == pytest.approx(0.025)
    assert result.span_s == pytest.approx(1.0)
    assert codes(result) == ["foreign_process", "foreign_process"]
    assert "steal" in result.flags[0].message
    assert "25.0%" in result.flags[1].message


@pytest.mark.parametrize(("foreign", "flagged"), [(0, False), (20, False), (21, True)])
def test_five_percent_is_the_limit(fake_host, clock, foreign, flagged):
    fake_host.process(PID, 0)

    def after():
        fake_host.process(PID, 100)
        fake_host.stat(user=100 + foreign, idle=1000 + 300 - foreign)

    assert codes(watch(fake_host, clock, after)) == (["foreign_process"] if flagged else [])


@pytest.mark.parametrize(("steal", "flagged"), [(20, False), (21, True)])
def test_steal_alone_flags(fake_host, clock, steal, flagged):
    fake_host.process(PID, 0)
    result = watch(fake_host, clock, lambda: fake_host.stat(idle=1400 - steal, steal=steal))
    assert codes(result) == (["foreign_process"] if flagged else [])


def test_a_short_span_has_no_load_figures(fake_host, clock):
    fake_host.process(PID, 0)
    result = watch(fake_host, clock, lambda: fake_host.stat(user=40, idle=1000), span_s=0.1)
    assert result.flags == ()
    assert "foreign_cpu_share" not in result.means
    assert "10 ms" in result.missing["foreign_cpu_share"]


def test_a_few_ticks_are_rounding_not_a_process(bare_host, clock):
    # 3 of 25 ticks on one processor is 12 %, and within the rounding of the counters; 4 is not.
    bare_host.process(PID, 0)
    bare_host.stat(cpus=1)
    assert codes(watch(bare_host, clock, lambda: bare_host.stat(user=3, idle=22, cpus=1), span_s=0.25)) == []
    bare_host.stat(cpus=1)
    result = watch(bare_host, clock, lambda: bare_host.stat(user=4, idle=21, cpus=1), span_s=0.25)
    assert codes(result) == ["foreign_process"]


def test_rounding_never_gives_a_negative_share(fake_host, clock):
    fake_host.process(PID, 0)

    def after():
        fake_host.process(PID, 102)
        fake_host.stat(user=100, idle=1300)

    assert watch(fake_host, clock, after).means["foreign_cpu_share"] == 0.0


def test_descendants_count_as_ours(fake_host, clock):
    # 100 starts 101, which starts 102; 103 belongs to somebody else.
    fake_host.process(PID, 10, children=(101,))
    fake_host.process(101, 10, children=(102,))
    fake_host.process(102, 10)
    fake_host.process(103, 10)

    def after():
        # 102 has ended and was waited for: its 110 ticks went over to 101.
        fake_host.process(101, 60, waited=110)
        fake_host.process(PID, 60, children=(101,))
        fake_host.process(103, 400)
        fake_host.stat(user=200, idle=1200)

    result = watch(fake_host, clock, after)
    assert result.means["own_cores"] == pytest.approx(2.0)
    assert result.means["foreign_cpu_share"] == 0.0


def test_a_circle_of_processes_ends(fake_host):
    fake_host.process(PID, 10, children=(101,))
    fake_host.process(101, 5, children=(PID,))
    assert counters.tree_ticks(fake_host.root, [PID]) == 15


def test_clock_is_that_of_the_measuring_processor(fake_host, clock):
    fake_host.process(PID, 0, cpu=2)  # 3.0 GHz

    def after():
        fake_host.process(PID, 0, cpu=3)  # 4.0 GHz

    assert watch(fake_host, clock, after).means["host_clock_hz"] == pytest.approx(3.5e9)


def test_clock_from_cpuinfo_needs_clock_counters(bare_host, clock):
    bare_host.process(PID, 0, cpu=1)
    bare_host.cpuinfo(mhz=(2000.0, 2500.5))
    assert watch(bare_host, clock, lambda: None).means["host_clock_hz"] == pytest.approx(2.5005e9)
    # Without APERF/MPERF the kernel prints a constant: not a measurement.
    bare_host.cpuinfo(more="hypervisor", mhz=(2000.0, 2500.5))
    result = watch(bare_host, clock, lambda: None)
    assert "host_clock_hz" not in result.means
    assert result.missing["host_clock_hz"]


def test_heat_counts_each_core_once(fake_host, clock):
    fake_host.process(PID, 0)

    def after():  # core 0,2 had two events, the package one
        fake_host.cpu("thermal_throttle/core_throttle_count", [5, 5, 5, 5])
        fake_host.cpu("thermal_throttle/package_throttle_count", [8, 8, 8, 8])

    result = watch(fake_host, clock, after)
    assert result.means["thermal_throttle_count"] == 3.0
    assert codes(result) == ["throttled_thermal"]


def test_quota_of_version_2_in_microseconds(fake_host, clock):
    fake_host.process(PID, 0)
    stat = "usage_usec 1\nnr_periods {}\nnr_throttled {}\nthrottled_usec {}"
    folder = fake_host.cgroup_v2(limits={"cpu.stat": stat.format(10, 2, 50_000), "cpu.max": "150000 100000"})
    # The parent has no quota: its cpu.stat says nothing of throttling.
    fake_host.write("sys/fs/cgroup/cpu.stat", "usage_usec 99")
    result = watch(fake_host, clock, lambda: fake_host.write(f"{folder}/cpu.stat", stat.format(20, 5, 300_000)))
    assert result.means["quota_throttled_count"] == 3.0
    assert result.means["quota_throttled_s"] == pytest.approx(0.25)
    assert codes(result) == ["throttled_quota"]


def test_quota_of_a_parent_group_holds_too(fake_host, clock):
    fake_host.process(PID, 0)
    stat = "nr_throttled {}\nthrottled_usec {}"
    own = fake_host.cgroup_v2("/pod/box", limits={"cpu.stat": stat.format(9, 9_000_000)})
    fake_host.write("sys/fs/cgroup/pod/cpu.stat", stat.format(0, 0))

    def after():
        fake_host.write("sys/fs/cgroup/pod/cpu.stat", stat.format(4, 400_000))

    result = watch(fake_host, clock, after)
    assert own.endswith("pod/box")
    assert result.means["quota_throttled_s"] == pytest.approx(0.4)
    assert result.means["quota_throttled_count"] == 4.0


def test_quota_of_version_1_in_nanoseconds(fake_host, clock):
    fake_host.process(PID, 0)
    fake_host.write("proc/self/cgroup", "4:memory:/m\n2:cpu,cpuacct:/docker/abc\n0::/")
    # Without a control-group namespace, the container's own group is the root of the mount.
    mount = "33 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw,relatime master:9 - cgroup cgroup rw,cpu,cpuacct"
    fake_host.write("proc/self/mountinfo", mount)
    path = "sys/fs/cgroup/cpu/cpu.stat"
    fake_host.write(path, "nr_periods 1\nnr_throttled 0\nthrottled_time 0")
    after = "nr_periods 9\nnr_throttled 1\nthrottled_time 70000000"
    result = watch(fake_host, clock, lambda: fake_host.write(path, after))
    assert result.means["quota_throttled_s"] == pytest.approx(0.07)


def test_an_empty_host_gives_reasons_not_figures(bare_host, clock):
    result = watch(bare_host, clock, lambda: None)
    assert result.means == {}
    assert set(result.missing) == {
        "foreign_cpu_share",
        "quota_throttled_s",
        "thermal_throttle_count",
        "host_clock_hz",
    }
    assert all(result.missing.values())


def test_frozen_counters_are_no_idle_machine(fake_host, clock):
    fake_host.process(PID, 0)
    result = watch(fake_host, clock, lambda: None)  # as some sandboxes show them
    assert "did not move" in result.missing["foreign_cpu_share"]


def test_host_load_says_nothing_about_an_accelerator(fake_host, clock):
    fake_host.process(PID, 0)

    def after():
        fake_host.stat(user=300, idle=1100)
        fake_host.cpu("thermal_throttle/package_throttle_count", [9] * 4)

    result = watch(fake_host, clock, after, is_device=False)
    assert result.flags == ()
    assert result.means["foreign_cpu_share"] == pytest.approx(0.75)
    assert result.means["thermal_throttle_count"] == 2.0


def test_start_and_stop_must_alternate():
    telemetry = NullTelemetry("turned off")
    with pytest.raises(SensorError, match="before it was started"):
        telemetry.stop()
    telemetry.start()
    with pytest.raises(SensorError, match="twice"):
        telemetry.start()
    telemetry.stop()
    with telemetry:
        pass
    assert telemetry.result.missing == {"telemetry": "turned off"}
    assert telemetry.result.means == {}


def test_a_failing_block_still_ends_the_watch():
    telemetry = NullTelemetry("turned off")
    with pytest.raises(RuntimeError), telemetry:
        raise RuntimeError
    telemetry.start()  # not left running


def test_seam_needs_both_ends():
    class Half(Telemetry):
        def _begin(self) -> None: ...

    with pytest.raises(TypeError, match="_end"):
        Half()


def test_series_must_fit():
    assert Series((0.0, 1.0), (3.0, 4.0)).values == (3.0, 4.0)
    with pytest.raises(SensorError, match="fit together"):
        Series((0.0, 1.0), (3.0,))


def test_telemetry_by_device_kind():
    assert type(telemetry_for("cpu")) is HostTelemetry
    beside = telemetry_for("xpu")
    with beside:
        pass
    assert "xpu" in beside.result.missing["device_clock_hz"]


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="no /proc on this system")
def test_real_machine_sees_our_own_work():
    if counters.ticks("/") is None:
        pytest.skip("/proc/stat is not readable here")
    telemetry = HostTelemetry()
    telemetry.start()
    until = time.perf_counter() + 0.6
    while time.perf_counter() < until:
        pass
    result = telemetry.stop()
    if "own_cores" not in result.means:
        pytest.skip(f"no load figures here: {result.missing}")
    # One thread spinning: about one processor. Less where others or a hypervisor push it aside, never two.
    assert 0.0 < result.means["own_cores"] < 1.5
    assert 0.0 <= result.means["foreign_cpu_share"] <= 1.0


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc on this system")
def test_real_child_is_found_while_it_runs_and_after():
    before = counters.tree_ticks("/", [os.getpid()])
    if before is None or not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
        pytest.skip("this kernel does not list children")
    # Burns 0.2 s of processor time, however long that takes, then waits to be looked at.
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in counters.children("/", os.getpid())
        alive = counters.tree_ticks("/", [os.getpid()])
        child.communicate("\n")
    assert child.pid not in counters.children("/", os.getpid())
    ended = counters.tree_ticks("/", [os.getpid()])
    assert alive is not None
    assert ended is not None
    # 20 ticks, each of user and system time rounded down; what the child used moves to its parent when it ends.
    assert alive - before >= 18
    assert ended >= alive - 2


def test_nothing_heavy_is_imported():
    code = "import sys, wattline.collectors.telemetry; print({'torch', 'pandas', 'psutil'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_find_cgroup_falls_back_to_the_mount(fake_host):
    # A path outside of the mounted part (a namespace entered from elsewhere) leaves the mount itself.
    fake_host.cgroup_v2("/../other", mount_root="/", limits={})
    found = host.find_cgroup("cpu", fake_host.root)
    assert found == host.Cgroup(2, ("sys/fs/cgroup",))
