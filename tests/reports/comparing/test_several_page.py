"""The report on several runs: what it says first, and that it comes out of any runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.errors import UsageError
from wattline.record import Reason, Record
from wattline.reports import write_comparison
from wattline.reports.comparing.reading import read_side
from wattline.reports.several import page as page_module
from wattline.reports.several.figures import bar, span_of
from wattline.reports.several.page import Page, build, render

Noisy = Callable[..., Path]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \u202e'\"" + "y" * 3000


def page_of(*runs: Path) -> Page:
    return build([read_side(run) for run in runs])


def claims(page: Page) -> list[str]:
    return [answer.claim for answer in page.answers]


def well_formed(text: str) -> set[str]:
    """The ids of a page whose tags all close; fails where they do not."""
    open_, ids = [], set()
    void = {"meta", "link", "br", "input", "img"}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.update(v for k, v in attrs if k == "id" and v)
            if tag not in void:
                open_.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_.pop() == tag

    Reader().feed(text)
    assert open_ == []
    return ids


def test_the_first_answer_is_the_regression(noisy: Noisy) -> None:
    page = page_of(noisy("old", 1), noisy("new", 2, change=lambda i, c: {3: 1.5, 20: 1.4}.get(i, 1.0)))
    assert re.fullmatch(r"2 cases are slower in new than in old, by up to \d\d %\.", claims(page)[0])
    assert len(page.answers[0].items) == 2
    text = render(page)
    ids = well_formed(text)
    links = set(re.findall(r'href="#([^"?]+)"', text))
    assert links <= ids, "every link leads somewhere"
    assert page.answers[0].items[0][0] in ids


def test_nothing_changed_is_said_as_such(noisy: Noisy) -> None:
    page = page_of(noisy("old", 1, scale=0.001), noisy("new", 2, scale=0.001))
    assert claims(page)[0] == "Nothing changed between old and new, within 2.0 %."
    page = page_of(noisy("loud", 1, scale=0.05), noisy("louder", 2, scale=0.05))
    assert claims(page)[0].startswith("No case is told to be slower or faster")
    assert "nine times out of ten" in page.answers[0].text


def test_of_two_machines_it_says_which_is_faster_for_what(noisy: Noisy, other_device: DeviceSpec) -> None:
    def other(i: int, case: Case) -> float:
        return 1.4 if case.op == "softmax.rows" else 0.5

    page = page_of(noisy("a", 1, energy=300.0), noisy("b", 2, energy=500.0, device=other_device, change=other))
    assert re.fullmatch(r"b is 1\.\d+ times as fast as a over all cases together\.", claims(page)[0])
    lines = [line for _, line in page.answers[0].items]
    assert any(line.startswith("b is faster for gemm.dense") for line in lines)
    assert any(line.startswith("a is faster for softmax.rows") for line in lines)
    assert "energy" in claims(page)[1]
    best = {row.name: row.best for row in page.operations}
    assert best == {"gemm.dense fp32": "b", "gemm.dense bf16": "b", "softmax.rows fp32": "a"}
    assert {row.name for row in page.formats} == {"fp32", "bf16"}


def test_of_a_fleet_the_outlier_comes_first(noisy: Noisy) -> None:
    page = page_of(*(noisy(f"node-{i}", i, level=0.15 if i == 2 else 0.0) for i in range(4)))
    assert claims(page)[0].startswith("node-2 stands out: slower than its peers by")
    assert "Fleet" in render(page)


def test_equal_names_are_told_apart(noisy: Noisy) -> None:
    page = page_of(noisy("x/run", 1), noisy("y/run", 2))
    assert page.names == ["run (1)", "run (2)"]


def test_a_folder_of_runs_stands_for_its_runs(noisy: Noisy, tmp_path: Path) -> None:
    root = noisy("all/one", 1).parent
    noisy("all/two", 2)
    path = write_comparison([root], tmp_path / "c.html")
    assert "<h1>one and two</h1>" in path.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="two at least"):
        write_comparison([root / "one"], tmp_path / "c.html")


def test_equal_runs_give_equal_files(noisy: Noisy) -> None:
    a, b = noisy("a", 1), noisy("b", 2)
    assert render(page_of(a, b)) == render(page_of(a, b))


def test_hostile_words_stay_text(
    write_records: Callable[..., Path], make_cases: Callable[[int], list[Case]], simple_record: Callable[..., Record]
) -> None:
    records = [simple_record(case, 1e-3) for case in make_cases(10)]
    hostile = [replace(r, case=replace(r.case, params={**r.case.params, "layout": HOSTILE})) for r in records]
    broken = [replace(r, status="failed", measurement=None, reason=Reason("x", HOSTILE)) for r in hostile[:2]]
    device = DeviceSpec(id="d", name=HOSTILE, kind="cuda")
    a = write_records("a", hostile, device=device, id=HOSTILE)
    b = write_records("b", [*broken, *hostile[2:]], device=device, environment={HOSTILE: HOSTILE}, id="b" + HOSTILE)
    text = render(page_of(a, b))
    well_formed(text)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert text.count("<script>") == 1


class TestBrokenRuns:
    def test_an_empty_run(self, noisy: Noisy, write_records: Callable[..., Path]) -> None:
        page = page_of(noisy("a", 1), write_records("b", []))
        assert claims(page)[0] == "b has nothing that could be held against a."
        assert any("holds no records" in problem for problem in page.problems)
        well_formed(render(page))

    def test_both_empty(self, write_records: Callable[..., Path]) -> None:
        page = page_of(write_records("a", []), write_records("b", []))
        assert "The runs hold no records" in render(page)

    def test_failures_alone(
        self, noisy: Noisy, write_records: Callable[..., Path], make_cases: Callable[[int], list[Case]]
    ) -> None:
        records = [Record(c, "crashed", "example-gpu", Reason("died", "signal 11")) for c in make_cases(60)]
        text = render(page_of(noisy("a", 1), write_records("b", records)))
        assert "signal 11" in text
        well_formed(text)


def test_a_long_table_keeps_what_changed(noisy: Noisy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_ROWS", 10)
    page = page_of(noisy("a", 1), noisy("b", 2, change=lambda i, c: {3: 1.5, 50: 1.4}.get(i, 1.0)))
    assert len(page.rows) == 10
    assert page.left_out == 50
    assert [row.changes[0][0] for row in page.rows[:2]] == ["slower", "slower"]
    assert "50 further cases" in render(page)


def test_the_interval_bar_stays_within_its_drawing() -> None:
    drawn = bar(9.0, -99.0, 99.0, 0.5, "slower")
    xs = [float(x) for x in re.findall(r'(?:M|H|\bx=")(-?[\d.]+)', drawn)]
    assert min(xs) >= 6
    assert max(xs) <= 144
    assert 'class="range"' not in bar(0.1, float("nan"), float("nan"), 0.5, "")


def test_the_axis_holds_nearly_all() -> None:
    assert span_of([]) == pytest.approx(0.0198, abs=1e-4)
    assert span_of([0.1] * 100 + [50.0]) == pytest.approx(0.115)
