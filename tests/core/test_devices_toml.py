"""Checks of the datasheet file: structure, ranges, sources, and relations that catch typing errors."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "src" / "wattline" / "devices.toml"
DEVICES = tomllib.loads(PATH.read_text(encoding="ascii"))

REQUIRED = {
    "name", "vendor", "kind", "arch", "memory_bandwidth", "memory_bytes", "tdp_w", "peak_flops", "sources",
}  # fmt: skip
EXPLAINED = {"l2_bytes", "sm_count", "clock_hz"}
"""Figures that may be absent only with a note."""
OPTIONAL = {"aliases", "compute_capability", "gfx", "link_bandwidth", "pcie_bandwidth", "note"}
FIGURES = {
    "memory_bandwidth": (1e10, 2e13),
    "memory_bytes": (1e9, 1e12),
    "l2_bytes": (1e6, 1e9),
    "sm_count": (4, 1000),
    "clock_hz": (5e8, 4e9),
    "tdp_w": (20, 1500),
    "link_bandwidth": (1e10, 2e12),
    "pcie_bandwidth": (4e9, 2.6e11),
}
FORMATS = {"fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"}
PEAK_RANGE = (1e11, 2e16)

EVAL_IDS = {
    "p4", "p100-pcie-16gb", "v100-pcie-32gb", "t4", "a100-pcie-40gb", "a100-sxm-40gb", "a100-sxm-80gb", "a40",
    "l40s", "h100-sxm", "h200-sxm", "rtx-4070",
}  # fmt: skip
"""The devices of the shared evaluation set; their values are a contract."""

FP32_LANES = {
    "6.0": 64, "6.1": 128, "7.0": 64, "7.5": 64, "8.0": 64, "8.6": 128, "8.9": 128, "9.0": 128, "10.0": 128,
    "10.3": 128, "12.0": 128, "gfx908": 64, "gfx90a": 64, "gfx942": 128, "gfx950": 128, "xe-hpc": 128,
}  # fmt: skip
"""FP32 multiply-adds per clock of an SM, CU or Xe-core."""

FP16_FLOP = {
    "6.0": {256}, "7.0": {1024}, "7.5": {512, 1024}, "8.0": {2048}, "8.6": {512, 1024}, "8.9": {512, 1024},
    "9.0": {4096}, "10.0": {8192}, "10.3": {8192}, "12.0": {512, 1024}, "gfx908": {1024}, "gfx90a": {1024},
    "gfx942": {2048}, "gfx950": {4096}, "xe-hpc": {4096},
}  # fmt: skip
"""Dense FP16 operations per clock of an SM, CU or Xe-core; two values where product lines differ."""

EXPORT_LIMITED = {"h20"}
"""Tensor rates below what SMs and clock give."""

each = pytest.mark.parametrize("device", sorted(DEVICES))


def generation(spec: dict) -> str:
    return spec.get("compute_capability") or spec.get("gfx") or spec["arch"]


def near(value: float, expected: float, tolerance: float) -> bool:
    return abs(value / expected - 1) <= tolerance


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def shared_file() -> Path | None:
    places = [ROOT.parent / "shared"]
    if os.environ.get("WATTLINE_SHARED"):
        places.insert(0, Path(os.environ["WATTLINE_SHARED"]))
    files = (place / "eval" / "devices.json" for place in places)
    return next((file for file in files if file.is_file()), None)


def test_file_is_plain_ascii_with_short_lines() -> None:
    assert max(len(line) for line in PATH.read_text(encoding="ascii").splitlines()) <= 120


def test_at_least_forty_devices_of_three_vendors() -> None:
    assert len(DEVICES) >= 40
    assert {spec["vendor"] for spec in DEVICES.values()} == {"nvidia", "amd", "intel"}


def test_names_are_unique() -> None:
    owners: dict[str, str] = {}
    for device, spec in DEVICES.items():
        names = [spec["name"], *spec.get("aliases", [])]
        for name in {device, *(n.casefold() for n in names)}:
            assert owners.setdefault(name, device) == device, f"{name!r} names {owners[name]} and {device}"
        assert len({n.casefold() for n in names}) == len(names), device


@each
def test_fields(device: str) -> None:
    spec = DEVICES[device]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", device)
    assert spec.keys() >= REQUIRED
    assert spec.keys() <= REQUIRED | EXPLAINED | OPTIONAL
    assert spec["vendor"] in {"nvidia", "amd", "intel"}
    assert spec["kind"] in {"gpu", "accelerator"}
    for key in ("name", "arch", "note"):
        assert isinstance(spec.get(key, "-"), str), key
        assert spec.get(key, "-").strip(), key
    assert all(isinstance(alias, str) and alias for alias in spec.get("aliases", []))
    assert ("compute_capability" in spec) == (spec["vendor"] == "nvidia")
    assert ("gfx" in spec) == (spec["vendor"] == "amd")
    assert re.fullmatch(r"\d+\.\d", spec.get("compute_capability", "0.0"))
    assert re.fullmatch(r"gfx[0-9a-f]+", spec.get("gfx", "gfx0"))
    if absent := EXPLAINED - spec.keys():
        assert "note" in spec, f"no note says why {sorted(absent)} is absent"


@each
def test_figures_are_in_range(device: str) -> None:
    spec = DEVICES[device]
    for key in FIGURES.keys() & spec.keys():
        low, high = FIGURES[key]
        assert is_number(spec[key]), key
        assert low <= spec[key] <= high, key
    assert isinstance(spec.get("sm_count", 1), int)
    peaks = spec["peak_flops"]
    assert peaks.keys() <= FORMATS
    assert peaks.keys() & {"fp32", "bf16"}
    for key, value in peaks.items():
        assert is_number(value), key
        assert PEAK_RANGE[0] <= value <= PEAK_RANGE[1], key


@each
def test_every_figure_has_a_source(device: str) -> None:
    spec = DEVICES[device]
    sources = spec["sources"]
    figures = (FIGURES.keys() & spec.keys()) | spec["peak_flops"].keys()
    for key, text in sources.items():
        assert key == "default" or key in figures, f"source of {key}, which is not given"
        assert isinstance(text, str), key
        assert len(text) >= 10, key
        assert "://" not in text, f"{key}: titles, not addresses"
    assert "default" in sources or figures <= sources.keys()


@each
def test_narrower_formats_are_not_slower(device: str) -> None:
    peaks = DEVICES[device]["peak_flops"]
    for wide, narrow in (
        ("fp64", "fp32"), ("fp32", "tf32"), ("tf32", "bf16"), ("bf16", "fp16"), ("fp32", "fp16"), ("bf16", "fp8"),
        ("fp16", "fp8"), ("bf16", "fp4"), ("fp8", "fp4"), ("fp16", "int8"), ("fp8", "int8"), ("int8", "int4"),
    ):  # fmt: skip
        if wide in peaks and narrow in peaks and not (wide == "fp64" and DEVICES[device]["vendor"] == "amd"):
            assert peaks[wide] <= peaks[narrow], f"{wide} > {narrow}"


@each
def test_formats_keep_the_ratios_of_the_hardware(device: str) -> None:
    peaks = DEVICES[device]["peak_flops"]
    if "tf32" in peaks and "bf16" in peaks:
        assert near(peaks["bf16"] / peaks["tf32"], 2, 0.03)
    if "bf16" in peaks and "fp16" in peaks:
        assert near(peaks["fp16"] / peaks["bf16"], 1, 0.01) or generation(DEVICES[device]) == "gfx908"
    for wide, narrow, ratios in (
        ("bf16", "fp8", (1, 2)), ("fp16", "int8", (1, 2, 4)), ("int8", "int4", (1, 2)), ("fp8", "fp4", (2, 3, 4)),
    ):  # fmt: skip
        if wide in peaks and narrow in peaks:
            ratio = peaks[narrow] / peaks[wide]
            assert any(near(ratio, expected, 0.03) for expected in ratios), f"{narrow} / {wide} = {ratio:.3f}"


@each
def test_fp32_rate_follows_from_units_and_clock(device: str) -> None:
    spec = DEVICES[device]
    if not {"sm_count", "clock_hz"} <= spec.keys() or "fp32" not in spec["peak_flops"]:
        pytest.skip("units, clock or FP32 rate not published")
    expected = 2 * FP32_LANES[generation(spec)] * spec["sm_count"] * spec["clock_hz"]
    assert near(spec["peak_flops"]["fp32"], expected, 0.12 if device in EXPORT_LIMITED else 0.05)


@each
def test_fp16_rate_follows_from_units_and_clock(device: str) -> None:
    spec = DEVICES[device]
    if device in EXPORT_LIMITED:
        pytest.skip("limited for export")
    if not {"sm_count", "clock_hz"} <= spec.keys() or "fp16" not in spec["peak_flops"]:
        pytest.skip("units, clock or FP16 rate not published")
    unit = spec["sm_count"] * spec["clock_hz"]
    # Hopper and Blackwell quote tensor rates at a clock below the maximum, hence the wider lower side.
    assert any(0.86 <= spec["peak_flops"]["fp16"] / (flop * unit) <= 1.03 for flop in FP16_FLOP[generation(spec)])


@each
def test_balance_is_plausible(device: str) -> None:
    spec = DEVICES[device]
    best = max(spec["peak_flops"].values())
    assert 5 <= best / spec["memory_bandwidth"] <= 2000, "operations per byte"
    assert 1e10 <= best / spec["tdp_w"] <= 2e13, "operations per joule"
    assert spec["memory_bytes"] / spec["memory_bandwidth"] <= 0.1, "seconds to read the memory once"
    for key in ("link_bandwidth", "pcie_bandwidth"):
        assert spec.get(key, 0) < spec["memory_bandwidth"]


def test_geforce_rates_are_those_of_fp32_accumulation() -> None:
    names = [d for d, s in DEVICES.items() if "GeForce" in s["name"]]
    assert "rtx-4070" in names
    for device in names:
        peaks = DEVICES[device]["peak_flops"]
        assert near(peaks["fp16"] / peaks["fp32"], 4 if device == "rtx-2080-ti" else 2, 0.02), device


def test_evaluation_devices_are_present() -> None:
    assert DEVICES.keys() >= EVAL_IDS


def test_evaluation_devices_have_the_shared_values() -> None:
    file = shared_file()
    if file is None:
        pytest.skip("no eval/devices.json in ../shared or under WATTLINE_SHARED")
    shared = json.loads(file.read_text(encoding="utf-8"))
    assert shared.keys() >= EVAL_IDS
    for device, expected in shared.items():
        spec = DEVICES[device]
        for key, value in expected.items():
            if key == "peak_flops":
                assert {k: spec[key].get(k) for k in value} == pytest.approx(value, rel=1e-9), device
            elif value is None:
                assert key not in spec, f"{device}: {key}"
            elif isinstance(value, str):
                assert spec[key] == value, f"{device}: {key}"
            else:
                assert spec[key] == pytest.approx(value, rel=1e-9), f"{device}: {key}"
