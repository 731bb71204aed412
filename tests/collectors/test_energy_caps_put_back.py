"""Caps are put back on every way out, kills included, and a second user waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from wattline_sim.capped_gpu import AS_FOUND, CAPPED, CHILD, FAKE, UUID, Gpu, Run, alive, wait_for

from wattline.collectors.energy.caps import Cap, GpuCaps
from wattline.errors import DeviceError, UnsupportedError


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
def test_a_killed_process_leaves_the_gpu_as_it_was(gpu: Gpu, capping: Callable[..., Run], number: int) -> None:
    process = capping()
    assert gpu.settings == CAPPED
    process.kill(number)
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")
    wait_for(lambda: not alive(process.watchdog), "the watchdog stays")
    assert gpu.journal == ""


def test_signals_to_the_whole_group_do_not_stop_the_watchdog(gpu: Gpu, capping: Callable[..., Run]) -> None:
    process = capping()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.watchdog, number)  # as a terminal or a service manager would
    time.sleep(0.1)
    assert alive(process.watchdog)
    os.killpg(process.process.pid, signal.SIGKILL)
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")


@pytest.mark.parametrize(("way", "status"), [("exit", 7), ("raise", 1)])
def test_every_other_way_out(gpu: Gpu, capping: Callable[..., Run], way: str, status: int) -> None:
    assert capping(way).process.wait(timeout=30) == status
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")


def test_a_forked_child_that_lives_on_holds_nothing_up(gpu: Gpu, capping: Callable[..., Run]) -> None:
    """It inherits the pipe, so the pipe does not end: the watchdog sees that its parent is another."""
    process = capping("fork")
    process.kill(signal.SIGKILL)
    assert alive(process.forked)
    wait_for(lambda: gpu.settings == AS_FOUND, "the settings were not put back")


def test_killed_together_the_next_run_puts_back_what_was_left(gpu: Gpu, capping: Callable[..., Run]) -> None:
    process = capping()
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


def test_a_second_user_of_the_same_gpu_is_refused(gpu: Gpu, capping: Callable[..., Run]) -> None:
    process = capping()
    with pytest.raises(UnsupportedError, match="held by another process") as caught, gpu.caps():
        pass
    assert caught.value.code == "caps_busy"
    assert gpu.settings == CAPPED
    process.kill(signal.SIGKILL)
    with gpu.caps() as caps:  # waits for the watchdog to finish
        assert caps.found.power_limit_w == 600.0


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


def fake_of(source: str) -> ModuleType:
    module = ModuleType("pynvml_stand_in")
    exec(source, module.__dict__)
    return module
