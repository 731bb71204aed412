"""The first screen of two sides answers what is asked: what became slower, or which of two machines is for what.

The runs are the simulated ones of the documentation, in which what differs is known.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.record import Reason, Record
from wattline.reports import compare_runs
from wattline.reports.comparing.reading import read_side
from wattline.reports.several.page import Page, build, render

ROOT = Path(__file__).resolve().parents[3]


def page_of(*runs: Path) -> Page:
    return build([read_side(run) for run in runs])


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    """The tool that writes simulated runs."""
    path = ROOT / "tools" / "simulated_runs.py"
    spec = importlib.util.spec_from_file_location("wattline_tests_simulated_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def versions(simulated: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base, new = simulated.write_versions(tmp_path_factory.mktemp("versions"))
    return base, new


@pytest.fixture(scope="module")
def machines(simulated: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    a, b = simulated.write_machines(tmp_path_factory.mktemp("machines"))
    return a, b


def test_what_was_planted_is_found_and_nothing_else(simulated: ModuleType, versions: tuple[Path, Path]) -> None:
    found = compare_runs(*versions)
    planted = {case.key for case in simulated.cases() if simulated.regressed(case) > 1}
    assert len(planted) == 9
    assert {r.key for r in found.of("slower")} == planted
    assert found.of("faster") == []


def test_a_regression_is_named_with_its_size_and_how_sure_it_is(versions: tuple[Path, Path]) -> None:
    page = page_of(*versions)
    assert page.lead.startswith("Example GPU A (80 GB), simulated: 4 runs of base, 4 runs of new.")
    slower, whole, energy = page.answers
    assert re.fullmatch(r"9 cases are slower in new than in base, by up to \d\.\d %\.", slower.claim)
    assert re.search(r"One of twenty equal measurements differs by \d\.\d % or more; at most 5\.0 %", slower.text)
    named = [line for _, line in slower.items]
    assert sum("gemm.dense" in line for line in named) == 3, "softmax, which lost more, does not hide the products"
    assert named[-1] == "and 3 of softmax.rows bf16"
    assert "softmax.rows bf16: +" in whole.text
    assert energy.claim.startswith("9 cases take more energy in new")
    assert energy.text == "All 9 are slower as well."
    assert not energy.items
    assert page.operations[0].name == "softmax.rows bf16", "what changed stands before what did not"
    assert page.operations[0].time[0].word == "slower"


def test_a_choice_says_which_is_better_for_what_and_what_cannot_run(machines: tuple[Path, Path]) -> None:
    page = page_of(*machines)
    assert page.choice
    assert "gpu-b is Example GPU B (48 GB), simulated, 3 runs" in page.lead
    speed, energy, lacking = page.answers
    assert re.fullmatch(r"gpu-a is \d\.\d+ times as fast as gpu-b over all cases together\.", speed.claim)
    assert "Case by case: gpu-a is faster in 44." in speed.text
    lines = [line for _, line in energy.items]
    assert any(re.match(r"gpu-b takes less energy for .*softmax\.rows bf16 \(1\.\d+ x\)", line) for line in lines)
    assert any(line.startswith("gpu-a takes less energy for attention.prefill bf16") for line in lines)
    assert lacking.claim == "gpu-b cannot run 10 cases of gemm.dense fp8_e4m3."
    assert lacking.text == "Unsupported: the device has no fp8 arithmetic. gpu-a measured them."
    rows = {row.name: row for row in page.operations}
    assert rows["gemm.dense fp8_e4m3"].time[0].text == "gpu-a only"
    assert re.fullmatch(r"gpu-a \d\.\d+\sx", rows["gemm.dense fp32"].time[0].text)
    assert re.fullmatch(r"gpu-b \d\.\d+\sx", rows["gemm.dense fp32"].energy[0].text)
    names = [row.name.split()[0] for row in page.operations]
    assert names == sorted(names, key=names.index), "formats of an operation stand together"
    assert render(page).count("simulated") >= 2


def test_what_the_first_machine_lacks_is_told_as_well(
    write_records: Callable[..., Path], make_cases: Callable[[int], list[Case]],
    simple_record: Callable[..., Record], other_device: DeviceSpec,
) -> None:  # fmt: skip
    cases = make_cases(24)
    records = [simple_record(case, 1e-3) for case in cases]
    refused = [
        replace(r, status="unsupported", measurement=None, reason=Reason("x", "no such kernel")) for r in records
    ]
    a = write_records("a", [r if r.case.op == "gemm.dense" else n for r, n in zip(records, refused, strict=True)])
    b = write_records("b", [*refused[:1], *records[1:-2]], device=other_device)
    page = page_of(a, b)
    told = {answer.claim: answer for answer in page.answers}
    assert told["a cannot run a case of softmax.rows fp32."].text == "Unsupported: no such kernel. b measured it."
    several = told["b has no figure for 2 cases that a measured."]
    assert [line for _, line in several.items] == [
        "gemm.dense fp32, 1 case: unsupported: no such kernel", "gemm.dense fp32, 1 case: b does not hold it",
    ]  # fmt: skip


def test_long_names_leave_room_for_the_figures(noisy: Callable[..., Path], other_device: DeviceSpec) -> None:
    names = "2026-01-02T030405Z-host-quick", "2026-01-03T030405Z-other-quick"
    page = page_of(noisy(names[0], 1), noisy(names[1], 2, device=other_device, speed=1.5))
    assert page.operations[0].time[0].text.startswith("B 1.")
    assert f"A is {names[0]}, B is {names[1]}." in render(page)
