"""The probe: what it asks for, and what it finds on this machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wattline.collectors.device import CpuDevice
from wattline.reasons import Reason
from wattline.suites import probe as probing
from wattline.suites.registry import get_implementation
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("kind", "layout"), [("cpu", "nn"), ("cuda", "nt")])
def test_it_asks_for_the_layout_that_the_device_multiplies(
    kind: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Device(CpuDevice):
        pass

    Device.kind = kind
    known = get_implementation("gemm.dense", "torch")

    def unmet(params: Any, machine: Machine) -> Reason:
        asked.append(params)
        return known.unmet(params, machine) or Reason("enough", "it would run")

    monkeypatch.setattr(probing, "get_implementation", lambda *_: SimpleNamespace(unmet=unmet))
    found = probing.Probe()
    machine = Machine(kind=kind, sm=90, torch_version=(2, 13))
    for fmt in ("fp8_e4m3", "int8", "bf16"):
        probing._arithmetic(found, Device(), machine, fmt)
        assert found.notes[f"flops.{fmt}"] == "unsupported, because it would run"
    assert {params["layout"] for params in asked} == {layout}


def test_the_launch_cost_of_this_machine() -> None:
    found = probing.Probe()
    probing._launch(found, CpuDevice())
    assert found.launch_s is not None
    assert 0 < found.launch_s < 1e-2
