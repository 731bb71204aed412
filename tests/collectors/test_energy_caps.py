"""Power limits and clocks: what may be set, what is refused, and that a cap holds within its block."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wattline_sim.capped_gpu import AS_FOUND, CAPPED, UUID, Gpu

from wattline.collectors.energy.caps import Cap, GpuCaps, parse_caps
from wattline.errors import DeviceError, ParamError, UnsupportedError


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


def test_a_driver_that_refuses_without_a_cause_is_a_failure_not_a_lack(gpu: Gpu) -> None:
    with gpu.caps() as caps:
        gpu.set(refusals=1, armed=True)
        with pytest.raises(DeviceError, match="setting 500 W on Imaginary GPU"):
            caps.apply(Cap(500.0))
    assert gpu.settings == AS_FOUND


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
