"""Text, JSON and Markdown say the same, fit where they belong, and let no foreign word act."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wattline.case import Case
from wattline.record import Reason, Record
from wattline.reports import compare_runs
from wattline.reports.comparing.comparison import Comparison
from wattline.reports.comparing.gate import check, parse_gates
from wattline.reports.comparing.to_json import to_json
from wattline.reports.comparing.to_markdown import escaped, to_markdown
from wattline.reports.comparing.to_text import to_text
from wattline.reports.comparing.words import percent_change, shortened

Noisy = Callable[..., Path]
GATES = parse_gates("slower:3%,failed")
HOSTILE = (
    "</details><script>alert(1)</script> | @everyone [x](http://evil.example) `rm` \x1b[2J \u202e **b** " + "x" * 10_000
)


@pytest.fixture
def compared(noisy: Noisy) -> Comparison:
    slower = {3: 1.6, 20: 1.4}
    return compare_runs(
        noisy("a", 1, energy=250.0),
        noisy("b", 2, energy=250.0, count=64, change=lambda i, c: slower.get(i, 0.7 if i == 5 else 1.0), hostname="b"),
    )


@pytest.fixture
def hostile(
    noisy: Noisy, write_records: Callable[..., Path], make_cases: Callable[[int], list[Case]],
    simple_record: Callable[..., Record],
) -> Comparison:  # fmt: skip
    cases = [replace(c, params={**c.params, "layout": HOSTILE}) for c in make_cases(9)]
    records = [simple_record(case, 1e-3) for case in make_cases(9)]
    a = [replace(r, case=case) for r, case in zip(records, cases, strict=True)]
    b = [replace(r, measurement=None, status="failed", reason=Reason("bad", HOSTILE)) for r in a[:3]]
    facts = {"libraries": {HOSTILE: HOSTILE}, "notes": HOSTILE}
    return compare_runs(write_records("a", a), write_records("b", [*b, *a[3:]], environment=facts, id=HOSTILE))


class TestText:
    def test_it_fits_a_terminal_and_says_what_matters(self, compared: Comparison) -> None:
        text = to_text(compared, GATES, check(compared, GATES))
        assert max(map(len, text.splitlines())) <= 80
        assert "60 cases compared: 2 slower, 1 faster" in text
        assert "FAILED slower:3%: 2 cases slower" in text
        assert "new (4)" in text
        assert "whole-machine shift" in text
        assert re.search(r"\+\d\d %  \(.*\)  [\d.]+ us -> [\d.]+ us", text)

    def test_passed_gates_are_named(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1), noisy("b", 2))
        assert "passed: slower:3%, failed" in to_text(found, GATES, check(found, GATES))

    def test_foreign_words_steer_no_terminal(self, hostile: Comparison) -> None:
        text = to_text(hostile)
        assert max(map(len, text.splitlines())) <= 80
        assert not set("\x1b\u202e\r") & set(text)


class TestJson:
    def test_it_holds_everything(self, compared: Comparison) -> None:
        data = json.loads(to_json(compared, GATES, check(compared, GATES)))
        assert data["schema"] == 1
        assert data["counts"] == compared.counts
        assert len(data["cases"]) == 64
        slower = [case for case in data["cases"] if case["verdict"] == "slower"]
        assert {case["key"] for case in slower} == set(data["violations"][0]["cases"])
        for case in slower:
            assert case["time"]["change_lo"] < case["time"]["change"] < case["time"]["change_hi"]
            assert case["time"]["ratio"] == pytest.approx(case["time"]["b_s"] / case["time"]["a_s"])
            assert case["energy"]["verdict"] == "more energy"
            assert Case.from_dict(case["case"]).key == case["key"]
        assert data["time"]["aa"]["pairs"] == 16

    def test_unknown_figures_are_null(self, noisy: Noisy) -> None:
        data = json.loads(to_json(compare_runs(noisy("a", 1, count=2, pairs=0), noisy("b", 2, count=2, pairs=0))))
        assert data["time"]["noise"]["spread"] is None


class TestMarkdown:
    def test_it_reads_as_a_comment(self, compared: Comparison) -> None:
        text = to_markdown(compared, GATES, check(compared, GATES))
        assert text.startswith("### Wattline: regression\n")
        assert text.count("<details") == text.count("</details>") >= 5
        assert "<details open><summary>2 slower</summary>" in text
        rows = [line for line in text.splitlines() if line.startswith("| gemm.dense") and line.count("|") == 6]
        assert len(rows) >= 3
        assert len(text) < 65_536
        assert to_markdown(compared, GATES, []).startswith("### Wattline: passed\n")

    def test_foreign_words_stay_text(self, hostile: Comparison) -> None:
        text = to_markdown(hostile)
        assert "<script" not in text
        assert "@everyone" not in text
        assert "http://" not in text
        assert "](" not in text.replace("\\](", "")
        assert text.count("<details") == text.count("</details>")
        assert len(text) < 65_536
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 5, 6}

    def test_special_characters(self) -> None:
        assert escaped("a|b*c_d`e<f>&") == "a\\|b\\*c\\_d\\`e&lt;f&gt;&amp;"
        assert escaped("@someone") == "@&#8203;someone"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0312, "+3.1 %"), (-0.12345, "-12 %"), (0.0, "0 %"), (0.0004, "+0.04 %"), (13.2, "x 14.2"),
        (float("nan"), "n/a"),
    ],
)
def test_changes_for_people(share: float, text: str) -> None:
    assert percent_change(share) == text


def test_long_labels_lose_their_middle() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijkl", 8) == "ab..ijkl"
    assert len(shortened("x" * 999, 61)) == 61
