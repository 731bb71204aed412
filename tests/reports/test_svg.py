"""Drawings: themeable, with unique ids, deterministic, and with points where the axes say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.reports.blocks import Figure
from wattline.reports.svg import (
    INK,
    MOST_MARKS,
    SERIES,
    Panel,
    apart,
    binary_tick,
    count_tick,
    log_ticks,
    si_tick,
)


def drawn(name: str = "p", text: str = "title") -> str:
    panel = Panel(name).titles(text, "x", "y")
    panel.ax.plot([0, 1], [0, 1], color=SERIES[2])
    panel.ax.fill_between([0, 1], [0, 1], color=INK, alpha=0.2)
    panel.points([0.0, 0.5, 1.0, float("nan")], [0.0, 0.5, 1.0, 1.0], ["r-a", "r-b", "r-c", "r-d"], 2)
    panel.ax.set_xlim(0, 1)
    panel.ax.set_ylim(0, 1)
    return str(panel.svg("three points"))


def test_the_drawing_is_xml_with_a_label() -> None:
    root = ET.fromstring(drawn())
    image = root[0]
    assert image.get("role") == "img"
    assert image.get("aria-label") == "three points"


def test_colours_are_variables_of_the_page() -> None:
    text = drawn()
    assert "var(--s2)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text), "no fixed colour is left"
    assert "<style" not in text
    assert "DejaVu" not in text


def test_ids_of_two_drawings_differ() -> None:
    ids = [set(re.findall(r' id="([^"]+)"', drawn(name))) for name in ("one", "two")]
    assert ids[0]
    assert not ids[0] & ids[1]
    for name, found in zip(("one", "two"), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", drawn(name))) <= found


def test_drawing_twice_gives_the_same() -> None:
    assert drawn() == drawn()


def test_points_link_to_records_and_stand_where_the_axes_say() -> None:
    text = drawn()
    links = re.findall(r'<a href="#(r-\w)" tabindex="-1"><use href="#mk2" x="([\d.]+)" y="([\d.]+)"/></a>', text)
    assert [name for name, *_ in links] == ["r-a", "r-b", "r-c"], "a point that is no number is left out"
    x, y = [float(v[1]) for v in links], [float(v[2]) for v in links]
    assert x[1] == pytest.approx((x[0] + x[2]) / 2, abs=0.11)
    assert y[1] == pytest.approx((y[0] + y[2]) / 2, abs=0.11)
    assert y[0] > y[2], "up is up"
    # The diagonal that Matplotlib drew passes through the first and the last point.
    line = re.search(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)"[^>]*stroke:var\(--s2\)', text)
    assert line
    assert [float(v) for v in line.groups()] == pytest.approx([x[0], y[0], x[2], y[2]], abs=0.11)


@pytest.mark.parametrize(
    "text", ["a < b & c > d", "</svg><script>alert(1)</script>", "$\\frac{1}{", '"quotes"', "--> x"]
)
def test_text_is_escaped_and_never_read_as_mathematics(text: str) -> None:
    root = ET.fromstring(drawn(text=text))
    assert text in [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


@pytest.mark.parametrize(
    ("value", "text"), [(1e12, "1 T"), (2.5e9, "2.5 G"), (0.001, "1 m"), (0, "0"), (40, "40"), (3e-7, "300 n")]
)
def test_tick_labels(value: float, text: str) -> None:
    assert si_tick(value) == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2e4, [1, 10, 100, 1e3, 1e4]),
        (3, 60, [5, 10, 20, 50]),
        (110, 170, [120, 135, 150, 165]),
    ],
)
def test_logarithmic_ticks_are_never_too_few(low: float, high: float, expected: list[float]) -> None:
    ticks = log_ticks(low, high)
    assert all(low <= t <= high for t in ticks)
    assert ticks == pytest.approx(expected) or len(ticks) >= 2


def test_logarithmic_ticks_are_never_too_many() -> None:
    assert len(log_ticks(1e-9, 1e9, most=6)) <= 6
    assert log_ticks(1, 4096, 2, most=5) == [1, 8, 64, 512, 4096]


def test_sizes_in_bytes_are_told_by_powers_of_1024() -> None:
    told = [binary_tick(v) for v in (512, 1024, 49152, 1.5 * 1024**2, 4 * 1024**3)]
    assert told == ["512 B", "1 KiB", "48 KiB", "1.5 MiB", "4 GiB"]
    assert [count_tick(v) for v in (0, 16, 4096, 2**23)] == ["0", "16", "4096", "8.39 M"]


def test_points_upon_each_other_are_drawn_as_one() -> None:
    x = np.linspace(0, 1, 5000)
    panel = Panel("many")
    panel.points(x, x, [f"r-{i}" for i in range(len(x))])
    panel.points([0.5], [0.2], ["r-lonely"], 1)
    drawing = panel.svg("a line of points")
    drawn = drawing.count("<a href=")
    assert drawn <= MOST_MARKS + 1
    assert "#r-lonely" in drawing
    assert "#r-0" in drawing
    assert Figure("f", "t", [drawing, drawing], "c").hidden == 2 * (5001 - drawn)


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), max_size=60), st.integers(1, 60))
def test_thinning_keeps_at_most_so_many_and_all_of_few(points: list[tuple[float, float]], most: int) -> None:
    kept = apart(np.array(points, float).reshape(-1, 2), most)
    assert len(kept) == len(set(kept)) <= most
    assert kept == sorted(kept)
    if len(points) <= most:
        assert kept == list(range(len(points)))
    elif points:
        assert kept[0] == 0 or len(set(map(tuple, points))) > 1
