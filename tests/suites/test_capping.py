"""Caps as conditions of cases, on a stand-in for the GPU's settings; whole runs are in test_simulated_gpu_run.py."""

from __future__ import annotations

from typing import Any

import pytest

import wattline.collectors.energy.caps as caps_module
from wattline.case import Case
from wattline.collectors.energy.caps import Cap, CapState
from wattline.errors import DeviceError, ParamError, UnsupportedError
from wattline.reasons import Reason
from wattline.suites.capping import Capping


class Fake:
    """Notes what is set; may be read-only, refuse values above 700 W, or be lost."""

    log: list[Any]
    reason: Reason | None = None
    remedy = ""
    mended: Any = None
    lost = False

    def __init__(self, device: str) -> None:
        type(self).log.append(("open", device))

    def __enter__(self) -> Fake:
        if self.lost:
            raise UnsupportedError("asking for the GPU failed", why="it has fallen off the bus", code="no_gpu")
        return self

    def apply(self, cap: Cap) -> CapState:
        if cap.power_limit_w and cap.power_limit_w > 700:
            raise ParamError("no power limit of that", why="its driver allows 200 to 700 W")
        self.log.append((cap.power_limit_w, cap.sm_clock_hz))
        return CapState("GPU-1", "fake", power_limit_w=700.0, enforced_power_limit_w=cap.power_limit_w or 700.0)

    def restore(self) -> None:
        self.log.append("restore")

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    made = type("Fresh", (Fake,), {"log": []})
    monkeypatch.setattr(caps_module, "GpuCaps", made)
    return made


def case(limit: float | None = None, clock: float | None = None) -> Case:
    return Case("gemm.dense", "torch", {"m": 1}, power_limit_w=limit, clock_hz=clock)


def test_nothing_is_opened_while_no_case_has_a_cap(fake: type[Fake]) -> None:
    held = Capping("GPU-1", "cuda", pytest.fail)
    assert held.hold(case()) is None
    assert held.facts == {}
    assert held.close() is None
    assert fake.log == []


def test_it_switches_only_when_the_cap_changes_and_back_for_cases_without(fake: type[Fake]) -> None:
    held = Capping("GPU-1", "cuda", pytest.fail)
    for limit in (500.0, 500.0, None, None, 400.0):
        assert held.hold(case(limit)) is None
        assert held.facts == ({"held_power_limit_w": limit} if limit else {})
    assert held.hold(case(None, 1.4e9)) is None
    assert held.close() is None
    assert held.close() is None
    assert fake.log == [("open", "GPU-1"), (500.0, None), (None, None), (400.0, None), (None, 1.4e9), "close"]


def test_what_the_gpu_refuses_becomes_the_reason_and_leaves_it_as_found(fake: type[Fake]) -> None:
    held = Capping("GPU-1", "cuda", pytest.fail)
    assert held.hold(case(500.0)) is None
    reason = held.hold(case(900.0))
    assert reason is not None
    assert "200 to 700 W" in reason.message
    assert fake.log[-1] == "restore"
    assert held.facts == {}
    assert held.hold(case()) is None


def test_read_only_is_told_once_and_the_rest_goes_on(fake: type[Fake]) -> None:
    fake.reason, fake.remedy = Reason("no_permission", "this user may not change it"), "run as root"
    told: list[str] = []
    held = Capping("GPU-1", "cuda", told.append)
    assert [held.hold(case(500.0)), held.hold(case(400.0)), held.hold(case())] == [fake.reason, fake.reason, None]
    assert told == ["this user may not change it; cases without a cap are measured as ever; to set caps: run as root"]
    assert fake.log == [("open", "GPU-1"), "close"]


def test_a_device_without_caps_says_so() -> None:
    told: list[str] = []
    reason = Capping("", "cpu", told.append).hold(case(500.0))
    assert reason is not None
    assert reason.code == "no_caps"
    assert "of type cpu" in reason.message
    assert len(told) == 1


def test_a_lost_gpu_is_a_reason_not_an_end(fake: type[Fake]) -> None:
    fake.lost = True
    told: list[str] = []
    reason = Capping("GPU-1", "cuda", told.append).hold(case(500.0))
    assert reason is not None
    assert "fallen off the bus" in reason.message


def test_what_could_not_be_put_back_is_handed_to_the_caller(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Fake) -> None:
        raise DeviceError("the settings could not be put back", todo="sudo nvidia-smi -pl 700")

    monkeypatch.setattr(fake, "close", refuse)
    held = Capping("GPU-1", "cuda", pytest.fail)
    held.hold(case(500.0))
    left = held.close()
    assert isinstance(left, DeviceError)
    assert "nvidia-smi" in left.todo
