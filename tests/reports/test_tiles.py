"""Tiles in a report: the best by time, energy and power, found where they were put."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.record import Energy
from wattline.reports import findings, tiles
from wattline.reports.data import ReportData
from wattline.reports.html import render

BLOCKS = {"block_m": 128, "block_n": 128, "block_k": 32, "warps": 4, "stages": 3, "group_m": 8, "tile": 0}
# Milliseconds and watts: the quickest takes 30 mJ, the second 24, the small one 60.
TILES = {(128, 128, 32): (0.1, 300.0), (64, 64, 32): (0.12, 200.0), (16, 16, 16): (0.5, 120.0)}


def case(size: int, sizes: tuple[int, int, int] = (128, 128, 32), impl: str = "triton", **more: Any) -> Case:
    named = dict(zip(("block_m", "block_n", "block_k"), sizes, strict=True))
    return Case("gemm.tiled", impl, {"m": size, "n": size, "k": size, "dtype": "bf16", **BLOCKS, **named, **more})


@pytest.fixture
def read(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Callable[..., ReportData]:
    """A run of given cases with exact times and, where given, watts."""

    def build(
        told: list[tuple[Case, float, float | None]], *, name: str = "run", record: dict[str, Any] | None = None
    ) -> ReportData:
        records = []
        for each, time_s, power_w in told:
            made = make_record(each, time_s=time_s, **{"noise": 1e-6, **(record or {})})
            if power_w is not None:
                joules = power_w * time_s
                energy = Energy(power_w, joules, 0.95 * joules, 1.05 * joules, "simulated counter", "gpu")
                made = replace(made, measurement=replace(made.measurement, energy=energy))
            records.append(made)
        return ReportData.read(run_of(records, name))

    return build


def all_tiles(size: int, energy: bool = True, slower: float = 1.0) -> list[tuple[Case, float, float | None]]:
    return [(case(size, s), 1e-3 * ms * slower, w if energy else None) for s, (ms, w) in TILES.items()]


def test_best_by_time_by_energy_and_by_power(read: Callable[..., ReportData]) -> None:
    data = read(all_tiles(4096))
    found = tiles.finding(data)
    assert found is not None
    assert found.title == (
        "A wrong tile costs up to 5.0 times the time: for 4096 x 4096 x 4096, bf16, triton, cold 128x128x32 is the "
        "quickest, 16x16x16 the slowest."
    )
    assert found.items == (
        "4096 x 4096 x 4096, bf16, triton, cold: quickest 128x128x32 (100 us); slowest of 3: 16x16x16, 5.0 times as "
        "long; least energy 64x64x32 (24.0 mJ, the quickest 25 % more); most: 16x16x16, 2.5 times as much; least power "
        "16x16x16 (120 W, the quickest 150 % more), which takes 5.0 times as long as the quickest",
    )
    assert found.text == (
        "In 1 of 1 products does another tile than the quickest take the least energy; the most wasteful tile takes up "
        "to 2.5 times as much of it."
    )
    assert found in findings.find(data)
    assert found.anchor == data.anchors[0]


def test_without_joules_time_alone_is_told(read: Callable[..., ReportData]) -> None:
    found = tiles.finding(read(all_tiles(4096, energy=False)))
    assert found is not None
    assert found.text == "No joules were measured, so tiles are compared by time alone."
    assert "energy" not in found.items[0]
    assert "power" not in found.items[0]


def test_one_tile_for_all_products(read: Callable[..., ReportData]) -> None:
    # 64x64x32 is at most a tenth behind; either of the others loses more somewhere.
    told = [(case(64, s), t, None) for s, t in (((128, 128, 32), 2.0), ((64, 64, 32), 1.1), ((16, 16, 16), 1.0))]
    told += [(case(512, s), t, None) for s, t in (((128, 128, 32), 10.0), ((64, 64, 32), 11.0), ((16, 16, 16), 40.0))]
    found = tiles.finding(read(told))
    assert found is not None
    assert "One tile for all 2 products of triton bf16: 64x64x32, which takes at most 10 % more time" in found.text
    assert "4.0 times" in found.title
    always = tiles.finding(read(all_tiles(256, False) + all_tiles(512, False, 8.0), name="always"))
    assert always is not None
    assert "128x128x32 is the quickest for all 2 products" in always.text


def test_what_was_varied_is_named_and_kernels_stay_apart(read: Callable[..., ReportData]) -> None:
    told = [(case(256, warps=w, stages=s), 1e-3 * (w + s), None) for w in (4, 8) for s in (2, 3)]
    told += [(case(256, impl="naive", tile=t), 1.0 / t, None) for t in (1, 2, 32)]
    told += [(case(300, impl="naive", tile=4), 1.0, None)]  # one tile alone is no comparison
    several = tiles.problems(read(told))
    assert [p.kernel for p in several] == ["triton bf16", "naive bf16"]
    assert several[0].rows["tiles"].tolist() == [
        "128x128x32, 4 warps, 2 stages", "128x128x32, 4 warps, 3 stages", "128x128x32, 8 warps, 2 stages",
        "128x128x32, 8 warps, 3 stages",
    ]  # fmt: skip
    assert several[1].rows["tiles"].tolist() == ["32x32", "2x2", "1x1"]
    assert several[1].excess("time_s").tolist() == pytest.approx([1.0, 16.0, 32.0], rel=1e-4)


def test_the_drawing_links_every_figure_to_its_record(read: Callable[..., ReportData]) -> None:
    data = read(all_tiles(4096) + all_tiles(512, energy=False))
    (figure,) = tiles.figures(data)
    assert len(figure.panels) == 2
    assert [panel.count("<a href") for panel in figure.panels] == [9, 3] or [
        panel.count("<a href") for panel in figure.panels
    ] == [3, 9]
    assert [name for _, name in figure.legend] == ["time", "energy", "power"]
    assert "5.0 times as long" in figure.panels[0]
    page = render(data)
    assert 'id="tiles"' in page
    assert "64x64x32" in page


def test_many_tiles_show_the_quickest_and_the_slowest(read: Callable[..., ReportData]) -> None:
    told = [(case(256, (16 * (i + 1), 16, 16)), 1e-3 * (i + 1), None) for i in range(30)]
    (figure,) = tiles.figures(read(told))
    assert figure.panels[0].count("<a href") == tiles.MAX_TILES
    assert ">16x16x16<" in figure.panels[0]
    assert ">480x16x16<" in figure.panels[0]
    assert ">320x16x16<" not in figure.panels[0]
    assert "Of more than 16 tiles the quickest and the 4 slowest are drawn." in figure.caption


def test_nothing_is_claimed_without_records(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any],
    read: Callable[..., ReportData],
) -> None:  # fmt: skip
    none = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert tiles.finding(none) is None
    assert tiles.figures(none) == []
    alone = read([(case(256), 1.0, None)], name="alone")
    assert tiles.finding(alone) is None
    assert tiles.figures(alone)[0].missing


@pytest.mark.parametrize("disturbed", [{"noise": 2.0}, {"flags": ("foreign_process",)}])
def test_disturbed_records_carry_no_verdict(read: Callable[..., ReportData], disturbed: dict[str, Any]) -> None:
    found = tiles.finding(read(all_tiles(256), record=disturbed))
    assert found is not None
    assert found.quiet
    assert "cannot be told" in found.title
