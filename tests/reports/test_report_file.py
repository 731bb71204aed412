"""The file that a report is: self-contained, safe, repeatable, small, and there for every run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from wattline.errors import SchemaError, StorageError
from wattline.reports import tables, write_report

MANIFEST = (
    "device",
    "environment",
    "environment_id",
    "plan",
    "totals",
    "energy",
    "aa",
    "timer",
    "probe",
    "finished_at",
)


VOID = {"meta", "link", "br", "input", "img", "hr"}
OPTIONAL = {"td", "tr", "li", "dt", "dd", "p", "option", "thead", "tbody"}
"""Elements that never, or need not, be closed."""


class Outline(HTMLParser):
    """Tags, texts by element id, and whether elements nest properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset") and value:
                self.urls.append(value)
            if name.startswith("on"):
                self.faults.append(f"{tag} has {name}")
            if name == "id" and value:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in OPTIONAL:
            self.open.pop()
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"stray </{tag}>")


@pytest.fixture(scope="module")
def text(big_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(big_run, tmp_path_factory.mktemp("out") / "r.html").read_text(encoding="utf-8")


def payload_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', text, re.S)
    assert found
    data = dict(json.loads(found.group(1)))
    for detail in data["details"]:
        for name in detail.keys() & {"l", "c", "w", "r"}:
            detail[name] = [data["strings"][v] if isinstance(v, int) else v for v in detail[name]]
    return data


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, wattline.reports; "
        "print([m for m in ('matplotlib', 'pandas', 'jinja2', 'numpy', 'torch', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_report_lies_in_the_run_folder_unless_told_otherwise(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any], tmp_path: Path
) -> None:
    run = run_of([make_record(make_case(64, 64, 64))])
    assert write_report(run) == run / "report.html"
    assert write_report(str(run), str(tmp_path / "x.html")) == tmp_path / "x.html"


def test_no_address_of_a_network_is_in_the_file(text: str) -> None:
    outline = Outline(text)
    assert [u for u in outline.urls if not u.startswith("#") and u != "data:,"] == []
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_policy_forbids_all_that_is_not_inline(text: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert policy.group(1).startswith("default-src 'none';")
    assert "http" not in policy.group(1)


def test_the_markup_is_well_formed_with_unique_ids(text: str) -> None:
    outline = Outline(text)
    assert outline.faults == []
    assert [t for t in outline.open if t not in OPTIONAL] == []
    assert len(outline.ids) == len(set(outline.ids))
    targets = {u[1:].split("?")[0] for u in outline.urls if u.startswith("#")}
    assert targets <= set(outline.ids)


def test_hostile_strings_are_escaped(text: str, hostile: str) -> None:
    outline = Outline(text)
    assert outline.tags.count("script") == 2
    assert "img" not in outline.tags
    assert "onerror=alert(2)>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    messages = [d["r"][1] for d in payload_of(text)["details"] if "r" in d]
    assert any(hostile in m for m in messages), "the payload carries it unharmed, as data"


def test_hostile_parameters_and_device_names(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any], hostile: str
) -> None:
    """Words of a case and the name of the device reach drawings, cells, commands and attributes."""
    case = replace(make_case(64, 64, 64, layout=hostile), impl=hostile)
    record = make_record(case)
    plain = [make_record(make_case(m, n, 64)) for m in (32, 128) for n in (32, 128)]
    run = run_of([record, *plain], device=replace(_cpu(record), name=hostile, note=hostile))
    text = write_report(run).read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.faults == []
    assert outline.tags.count("script") == 2
    assert "img" not in outline.tags


def test_characters_that_no_file_may_hold(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    odd = "\x00\x1b[31m\uffff"
    records = [make_record(make_case(m, n, 64)) for m in (32, 128) for n in (32, 128)]
    records = [replace(r, case=replace(r.case, params={**r.case.params, "dtype": f"fp32{odd}"})) for r in records]
    run = run_of(records, manifest={"id": odd + "\ud800", "environment": {"hostname": odd + "\ud800"}})
    text = write_report(run).read_text(encoding="utf-8")
    assert Outline(text).faults == []
    assert "fp32\ufffd" in text


def _cpu(record: Any) -> Any:
    from wattline.device import Ceilings, DeviceSpec

    return DeviceSpec(id=record.device, kind="cpu", measured=Ceilings({"fp32": 2e11}, 2.4e10))


def test_equal_runs_give_equal_files(big_run: Path, text: str, tmp_path: Path) -> None:
    assert write_report(big_run, tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_a_thousand_records_stay_small(
    run_of: Callable[..., Path], planned: Callable[..., list[Any]], fill: Callable[..., Iterator[Any]]
) -> None:
    formats = ("fp32", "bf16", "fp64", "int8")
    cases = [
        p for data in ("uniform", "normal", "zeros", "integers", "sparse") for p in _with_data(planned(formats), data)
    ]
    records = list(fill(cases[:1000]))[:1000]
    path = write_report(run_of(records))
    assert path.stat().st_size <= 2_000_000
    assert len(payload_of(path.read_text(encoding="utf-8"))["anchors"]) == 1000


def _with_data(cases: list[Any], data: str) -> list[Any]:
    return [replace(p, case=replace(p.case, data=data)) for p in cases]


def test_what_a_row_unfolds_to_is_complete(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    record = make_record(make_case(64, 96, 128), flags=("noisy",), samples=100, energy=True)
    other = make_record(make_case(64, 96, 256), samples=5)
    first, second = payload_of(write_report(run_of([record, other])).read_text(encoding="utf-8"))["details"]
    assert " ".join(first["l"]) == record.case.label()
    assert "--set k=128" in " ".join(first["c"])
    facts = dict(zip(first["w"][::2], first["w"][1::2], strict=True))
    assert facts["check"] == "passed: error 3e-07, tolerance 1e-05, full"
    assert facts["samples"].startswith("100 of 4 calls each")
    assert facts["energy"].endswith("95.0 W, simulated counter, package")
    assert first["f"] == [["noisy", "figures behind noisy"]]
    assert len(first["s"]) <= 48
    assert first["n"] == 100
    median = other.measurement.stats.median_s
    assert second["s"] == [round(1000 * v / median) - 1000 for v in other.measurement.samples_s]


def test_a_run_without_records_says_so(run_of: Callable[..., Path]) -> None:
    text = write_report(run_of([])).read_text(encoding="utf-8")
    assert "The run holds no records" in text
    assert Outline(text).faults == []


def test_a_run_without_figures_says_why(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_unmeasured: Callable[..., Any]
) -> None:
    records = [
        make_unmeasured(make_case(n, n, n, "fp16"), "unsupported", "no_kernel", "no fp16 here") for n in (64, 96)
    ]
    text = write_report(run_of(records)).read_text(encoding="utf-8")
    assert "None of the 2 records has a figure that can be trusted" in text
    assert "no fp16 here" in text
    assert Outline(text).faults == []


def test_one_record_is_enough(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    text = write_report(run_of([make_record(make_case(256, 256, 256), energy=True)])).read_text(encoding="utf-8")
    assert Outline(text).faults == []
    assert "Not drawn." in text, "figures that need more say so"
    assert "<svg viewBox" in text


@pytest.mark.parametrize("missing", [*((name,) for name in MANIFEST), MANIFEST])
def test_any_part_of_the_manifest_may_be_missing(
    run_of: Callable[..., Path],
    make_case: Callable[..., Any],
    make_record: Callable[..., Any],
    missing: tuple[str, ...],
) -> None:
    records = [make_record(make_case(n, n, n)) for n in (64, 128, 256)]
    text = write_report(run_of(records, drop=missing)).read_text(encoding="utf-8")
    assert Outline(text).faults == []
    assert len(payload_of(text)["anchors"]) == 3


@pytest.mark.parametrize("name", MANIFEST[1:])
def test_a_manifest_with_nonsense_in_it_is_survived(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any], name: str
) -> None:
    records = [make_record(make_case(64, 64, 64))]
    for i, nonsense in enumerate(("text", ["a", {"b": 1}], {"measured": 7, "reason": 3, "notes": 5, "flops": "x"})):
        text = write_report(run_of(records, name=f"run{i}", manifest={name: nonsense})).read_text(encoding="utf-8")
        assert Outline(text).faults == []


def test_an_interrupted_run_counts_what_is_missing(
    big_run: Path, run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    run = run_of([make_record(make_case(n, n, n)) for n in (64, 128, 256)], state="interrupted")
    lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "records.jsonl").write_text(lines[0] + lines[1][:80], encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert re.search(r"<td>Not reached</td><td class=\"num\">2</td>", text)
    assert "the last line is torn" in text


def test_a_run_that_lost_its_plan_says_so(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    run = run_of([make_record(make_case(64, 64, 64))])
    (run / "plan.jsonl").unlink()
    text = write_report(run).read_text(encoding="utf-8")
    assert "has lost its plan" in text
    assert Outline(text).faults == []


def test_records_of_a_newer_version_are_told_on_the_page(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    run = run_of([make_record(make_case(n, n, n)) for n in (64, 128)])
    lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "schema": 999})
    (run / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "records.jsonl, line 1 cannot be read and was left out" in text
    assert len(payload_of(text)["anchors"]) == 1


def test_missing_traces_cost_their_figures_only(metered_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(metered_run, other)
    shutil.rmtree(other / "traces")
    text = write_report(other).read_text(encoding="utf-8")
    assert "Nothing was sampled over time in this run" in text
    assert 'id="energy-time"' in text


def test_of_a_large_run_the_script_draws_the_rows(
    monkeypatch: pytest.MonkeyPatch, run_of: Callable[..., Path], make_case: Callable[..., Any],
    make_record: Callable[..., Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(tables, "STATIC", 2)
    monkeypatch.setattr(tables, "LARGE", 2)
    text = write_report(run_of([make_record(make_case(n, n, n)) for n in (64, 128, 256)])).read_text(encoding="utf-8")
    assert len(re.findall(r'<tr id="r-', text)) == 2
    assert "so do all rows after the first 2" in text
    data = payload_of(text)
    assert data["large"]
    assert len(data["anchors"]) == len(data["values"]) == len(data["texts"]) == 3
    for detail in data["details"]:
        assert "s" not in detail, "samples stay in the run folder"
        assert detail["w"][::2] == ["median", "samples", "check", "bound", "started", "key"]


def test_energy_columns_and_their_absence(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    without = write_report(run_of([make_record(make_case(64, 64, 64))], name="a")).read_text(encoding="utf-8")
    assert "energy_j" not in payload_of(without)["columns"]
    assert "intel-rapl:0/energy_uj: root only" in without
    record = make_record(make_case(64, 64, 64), energy=True)
    run = run_of([record], name="b", energy={"available": True, "name": "simulated"})
    with_energy = write_report(run).read_text(encoding="utf-8")
    assert "energy_j" in payload_of(with_energy)["columns"]
    assert "root only" not in with_energy


def test_a_listed_device_shows_both_ceilings(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any], listed_device: Any
) -> None:
    records = [make_record(make_case(n, n, n, "bf16"), listed_device) for n in (512, 2048, 4096)]
    text = write_report(run_of(records, device=listed_device)).read_text(encoding="utf-8")
    assert "datasheet ceiling" in text
    assert "measured ceiling" in text
    assert "of the datasheet peak" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 999}', encoding="utf-8")
    with pytest.raises(SchemaError, match="999"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 1, "device": {"id": "x", "colour": "red"}}', encoding="utf-8")
    with pytest.raises(SchemaError, match="colour"):
        write_report(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(big_run: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        write_report(big_run, tmp_path / "missing" / "r.html")
