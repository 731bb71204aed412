"""DeviceSpec: what is refused, what survives, and which part a driver's name means."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from wattline import device
from wattline.device import Ceilings, DeviceSpec, known_device, known_devices, match_device, slug
from wattline.errors import ParamError, SchemaError, UnknownNameError
from wattline.work import Work, bound

FIGURES = (
    "memory_bandwidth", "memory_bytes", "l2_bytes", "sm_count", "clock_hz", "tdp_w", "idle_w", "link_bandwidth",
    "pcie_bandwidth",
)  # fmt: skip


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SchemaError, match="no field 'memory_bandwith'") as caught:
        DeviceSpec.from_dict({"id": "x", "memory_bandwith": 1e12})
    assert "memory_bandwidth" in caught.value.why


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "fast"])
def test_figures_must_be_finite_and_above_zero(name: str, value: object) -> None:
    with pytest.raises(ParamError, match=f"device x: {name} must be"):
        DeviceSpec.from_dict({"id": "x", name: value})


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "fast"])
def test_rates_are_checked_too_measured_ones_included(value: object) -> None:
    for data in (
        {"peak_flops": {"fp32": value}},
        {"measured": {"flops": {"fp32": value}}},
        {"measured": {"memory_bandwidth": value}},
        {"measured": {"launch_s": value}},
    ):
        with pytest.raises(ParamError, match="must be a finite number above zero"):
            DeviceSpec.from_dict({"id": "x", **data})
    with pytest.raises(ParamError):
        DeviceSpec("x").with_measured(Ceilings(memory_bandwidth=-1.0))
    with pytest.raises(ParamError, match=r"measured\.links\.pcie"):
        DeviceSpec("x").with_links({"pcie": 0.0})


def test_a_measured_link_stands_in_for_the_datasheets() -> None:
    found = DeviceSpec("x", pcie_bandwidth=3e10).with_links({"fabric": 6e9, "pcie": 2e10})
    assert (found.link_speed("fabric"), found.link_speed("pcie")) == (6e9, 3e10)
    assert found.listed_link("fabric") is None
    assert DeviceSpec.from_dict(found.to_dict()) == found
    assert bound(Work(link_bytes={"fabric": 3e9}), found).time_s == 0.5


@pytest.mark.parametrize("data", [{}, {"id": ""}, {"id": None}, {"id": 5}])
def test_a_device_needs_an_id(data: dict[str, object]) -> None:
    with pytest.raises(ParamError, match="needs an id"):
        DeviceSpec.from_dict(data)


def test_a_figure_where_a_table_belongs_is_refused() -> None:
    with pytest.raises(SchemaError, match="peak_flops must be a table"):
        DeviceSpec.from_dict({"id": "x", "peak_flops": 5e12})


def test_null_means_unknown() -> None:
    spec = DeviceSpec.from_dict({"id": "x", "link_bandwidth": None, "peak_flops": {"fp32": 1e12}, "sm_count": 8})
    assert spec.link_bandwidth is None
    assert spec.listed
    assert not DeviceSpec("y").listed


def test_nothing_is_lost_by_json() -> None:
    spec = DeviceSpec(
        "x", name="X 9000", vendor="acme", peak_flops={"fp32": 1e12}, memory_bandwidth=1e11, sm_count=7,
        aliases=("X9",), sources={"default": "a datasheet"}, note="n",
    ).with_measured(Ceilings({"fp32": 9e11}, 9e10, 4e-6))  # fmt: skip
    data = json.loads(json.dumps(spec.to_dict(), allow_nan=False))
    assert DeviceSpec.from_dict(data) == spec
    assert "tdp_w" not in data  # unknown stays absent


@pytest.mark.parametrize("device_id", sorted(known_devices()))
def test_every_listed_device_survives_json_and_is_found_by_all_its_names(device_id: str) -> None:
    spec = known_device(device_id)
    assert DeviceSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for name in (spec.name, *spec.aliases):
        found = match_device(name, spec.memory_bytes)
        assert found is not None
        assert found.id == device_id
        assert match_device(name.upper()) is not None


def test_an_unknown_id_shows_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'h100-smx'") as caught:
        known_device("h100-smx")
    assert "h100-sxm" in caught.value.why


def test_driver_names_are_matched_but_for_case_and_spacing() -> None:
    found = match_device("nvidia  a100-SXM4_80GB", 85_031_714_816)  # what the driver reports is a little more
    assert found is not None
    assert found.id == "a100-sxm-80gb"
    assert match_device("NVIDIA A100") is None  # a part of a name is not a name
    assert match_device("") is None


def test_memory_tells_parts_of_one_name_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "small": DeviceSpec("small", name="Card", memory_bytes=16e9),
        "large": DeviceSpec("large", name="Card", memory_bytes=32e9),
    }
    monkeypatch.setattr(device, "known_devices", lambda: parts)
    for memory, expected in ((16.9e9, "small"), (34.1e9, "large"), (15e9, "small")):
        found = match_device("CARD", memory)
        assert found is not None
        assert found.id == expected
    assert match_device("Card", 22e9) is None  # more than a quarter off both: some other part
    assert match_device("Card", 80e9) is None
    assert match_device("Card") is parts["small"]


def test_ids_made_of_names() -> None:
    assert slug("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz") == "intel-xeon-gold-6338-cpu-2-00ghz"
    assert slug("  ") == "device"


def test_the_devices_of_the_evaluation_load(shared_eval: Path) -> None:
    table = json.loads((shared_eval / "devices.json").read_text())
    assert len(table) >= 10
    for key, entry in table.items():
        spec = DeviceSpec.from_dict({"id": key, **entry})
        assert spec.memory_bandwidth == entry["memory_bandwidth"]
        assert dict(spec.peak_flops) == entry["peak_flops"]
        assert spec.rate("fp32")[0] == entry["peak_flops"]["fp32"]
