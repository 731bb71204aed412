"""What commands print: doctor, list, plan, fit, predict, report, export."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.cli.main import main
from wattline.predictors import load

Capture = pytest.CaptureFixture[str]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def told(capsys: Capture) -> Callable[..., str]:
    """Calls the command line in this process; returns stdout, and fails on any other exit code than 0."""

    def call(*args: str | Path, code: int = 0) -> str:
        found = main([str(arg) for arg in args])
        shown = capsys.readouterr()
        assert found == code, shown.err
        return shown.out

    return call


@pytest.fixture(scope="module")
def bundle(learnable_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor fitted by the command."""
    path = tmp_path_factory.mktemp("bundle") / "p.wl"
    assert main(["fit", str(learnable_run), "--out", str(path), "--no-scores", "--quiet"]) == 0
    return path


def test_list_names_every_registered_operation(told: Callable[..., str]) -> None:
    from wattline.suites.registry import entries

    assert told("list", "--quiet").split() == list(entries())
    assert [entry["op"] for entry in json.loads(told("list", "--json"))] == list(entries())
    lines = told("list").splitlines()
    assert lines[0].split()[0] == "operation"
    assert [line.split()[0] for line in lines[1:]] == list(entries())


def test_list_of_one_operation_shows_types_and_defaults(told: Callable[..., str]) -> None:
    from wattline.suites.registry import get

    shown = {p["name"]: p for p in json.loads(told("list", "gemm.dense", "--json"))["parameters"]}
    declared = get("gemm.dense").workload.params
    assert list(shown) == list(declared)
    for name in declared:
        assert shown[name]["takes"] == declared[name].describe()
        assert shown[name]["required"] == declared[name].required
    text = told("list", "gemm.dense")
    assert "required" in text
    assert "torch" in text
    assert [entry["op"] for entry in json.loads(told("list", "gemm", "--json"))][:1] == ["gemm.dense"]


@pytest.mark.parametrize(
    ("what", "column", "sample"),
    [
        ("presets", "preset", "standard"),
        ("devices", "device", "h200-sxm"),
        ("formats", "format", "bf16"),
        ("regimes", "regime", "cold"),
        ("data", "data", "zeros"),
    ],
)
def test_other_lists(told: Callable[..., str], what: str, column: str, sample: str) -> None:
    rows = json.loads(told("list", what, "--json"))
    assert sample in [row[column] for row in rows]
    assert told("list", what, "--quiet").split() == [row[column] for row in rows]
    assert len(told("list", what).splitlines()) == len(rows) + 1


def test_doctor_gives_its_findings_as_text_and_json(told: Callable[..., str]) -> None:
    from dataclasses import fields

    from wattline.collectors.doctor import Finding

    found = json.loads(told("doctor", "--json"))
    assert {f.name for f in fields(Finding)} == set(found[0])
    text = told("doctor")
    for finding in found:
        assert f"{finding['name']}: " in text
    assert "  ok  " not in told("doctor", "--quiet")


def test_plan_counts_what_it_lists_and_makes_no_file(
    told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("plan", "gemm", "--preset", "smoke", "--device", "cpu")
    data = json.loads(told(*args, "--json", "--cases"))
    assert data["cases"] == len(data["plan"]) == sum(group["cases"] for group in data["groups"])
    assert data["peak_bytes"] == max(case["memory_bytes"] for case in data["plan"])
    assert sum(group["unsupported"] for group in data["groups"]) == sum(bool(c["unsupported"]) for c in data["plan"])
    listed = told(*args, "--cases", "--quiet").splitlines()
    assert [line.split()[0] for line in listed] == [case["key"] for case in data["plan"]]
    assert f"{data['cases']} cases" in told(*args)
    assert not list(tmp_path.iterdir())


def test_plan_of_explicit_axes_is_their_product(told: Callable[..., str]) -> None:
    axes = ("--set", "m=8:32:x2", "--set", "n=16,32", "--set", "k=64", "--dtype", "fp32", "--only", "m*n <= 512")
    data = json.loads(told("plan", "gemm.dense", "--device", "cpu", *axes, "--json", "--cases"))
    shapes = {(c["params"]["m"], c["params"]["n"], c["params"]["k"]) for c in data["plan"]}
    assert shapes == {(8, 16, 64), (8, 32, 64), (16, 16, 64), (16, 32, 64), (32, 16, 64)}


def test_plan_shows_refused_cases_with_the_figure(told: Callable[..., str]) -> None:
    axes = ("--set", "m=64,1M", "--set", "n=1M", "--set", "k=1M", "--dtype", "fp32")
    text = told("plan", "gemm.dense", "--device", "cpu", "--set", "m=64,1M", *axes[2:], code=2)
    assert text == ""  # both hold a matrix of 1e12 elements
    axes = ("--set", "m=64,1M", "--set", "n=64", "--set", "k=64,1M", "--dtype", "fp32")
    data = json.loads(told("plan", "gemm.dense", "--device", "cpu", *axes, "--json"))
    assert data["cases"] + len(data["refused"]) == 4
    assert [(r["params"]["m"], r["params"]["k"]) for r in data["refused"]] == [(10**6, 10**6)]
    assert "TB" in data["refused"][0]["reason"]
    shown = told("plan", "gemm.dense", "--device", "cpu", *axes)
    assert "refused: 1" in shown
    assert data["refused"][0]["reason"] in shown


def test_fit_prints_scores_beside_the_roofline(told: Callable[..., str], learnable_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.wl"
    data = json.loads(told("fit", learnable_run, "--out", out, "--folds", "2", "--json"))
    assert data["rows"] == 160
    # Times are twice the bound plus 3 us: the roofline is off by half and more, a model that learned is not.
    assert data["scores"]["roofline_mape"] > 50
    assert data["scores"]["mape"] < 10
    assert {entry["dtype"] for entry in data["by_class"]} == {"fp32", "bf16"}
    assert load(out).provenance_["evaluation"]["mape"] == data["scores"]["mape"]


def test_fit_takes_several_runs(
    told: Callable[..., str], learnable_run: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both.wl"
    data = json.loads(told("fit", learnable_run, run_folder, "--out", out, "--no-scores", "--json"))
    assert data["rows"] == 166
    assert data["runs"] == ["run", "run"]
    assert load(out).provenance_["rows"] == 166


def test_fit_refuses_too_few_rows(run_folder: Path, capsys: Capture) -> None:
    assert main(["fit", str(run_folder)]) == 2
    assert "6 valid rows" in capsys.readouterr().err
    assert not (run_folder / "predictor.wl").exists()


def test_predict_says_what_the_library_says(told: Callable[..., str], bundle: Path) -> None:
    words = ("gemm.dense", "m=1K", "n=512", "k=256", "dtype=fp32", "--coverage", "0.8")
    wanted = load(bundle).estimate("gemm.dense", m=1000, n=512, k=256, dtype="fp32", coverage=0.8)
    assert json.loads(told("predict", bundle, *words, "--json")) == json.loads(json.dumps(wanted.to_dict()))
    assert told("predict", bundle, *words) == f"{wanted}\n"
    explained = json.loads(told("predict", bundle, *words, "--json", "--explain"))["explanation"]
    assert sum(explained["terms"].values()) == pytest.approx(wanted.time_s, rel=1e-6)
    assert str(wanted.explain()) in told("predict", bundle, *words, "--explain")


@pytest.mark.parametrize(("word", "known"), [("regime=warm", "near it: "), ("data=uniforn", "near it: uniform")])
def test_predict_for_a_condition_that_does_not_exist(bundle: Path, word: str, known: str, capsys: Capture) -> None:
    assert main(["predict", str(bundle), "gemm.dense", "m=64", "n=64", "k=64", "dtype=fp32", word]) == 2
    said = capsys.readouterr().err
    assert word.split("=")[1] in said
    assert "wattline list" in said


def test_predict_a_table(told: Callable[..., str], bundle: Path, tmp_path: Path) -> None:
    table = tmp_path / "shapes.csv"
    table.write_text("\ufeffop,m,n,k,dtype\ngemm.dense,64,64,64,fp32\n,4K,512,100,bf16\n", encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(told("predict", bundle, "gemm.dense", "--csv", table))))
    predictor = load(bundle)
    for row in rows:
        m, n, k = (int({"4K": "4000"}.get(row[c], row[c])) for c in "mnk")
        wanted = predictor.estimate("gemm.dense", m=m, n=n, k=k, dtype=row["dtype"])
        assert float(row["time_s"]) == wanted.time_s
        assert row["bound_by"] == wanted.bound_by
    assert len(rows) == 2
    told("predict", bundle, "gemm.dense", "--csv", table, "--out", tmp_path / "out.csv")
    assert list(csv.DictReader((tmp_path / "out.csv").open())) == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("op,m,n,k,dtype\ngemm.dense,64,64,64,fp32\ngemm.dense,-1,64,64,fp32\n", "line 3"),
        ("op,m,n,k,dtype\ngemm.dense,64,64,64\n", "line 2"),
        ("m,n,k,dtype\n64,64,64,fp32\n", "no operation"),
        ("op,m,time_s\ngemm.dense,64,1\n", "time_s"),
        ("", "empty"),
    ],
)
def test_predict_a_wrong_table(bundle: Path, tmp_path: Path, capsys: Capture, text: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert main(["predict", str(bundle), "--csv", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_report_and_export_say_where_they_wrote(told: Callable[..., str], energy_run: Path, tmp_path: Path) -> None:
    assert told("report", energy_run, "--out", tmp_path / "r.html").strip() == str(tmp_path / "r.html")
    assert "<html" in (tmp_path / "r.html").read_text()[:500]
    assert told("export", energy_run, "-f", "parquet", "-o", tmp_path / "r.parquet").strip().endswith("r.parquet")


def test_export_to_stdout_is_the_file(program: Program, run_folder: Path, tmp_path: Path) -> None:
    program("export", run_folder, "--format", "csv", "-o", "r.csv")
    piped = program("export", run_folder, "--format", "csv")
    assert piped.stdout == (tmp_path / "r.csv").read_text()
    left_out = program("export", run_folder, "--format", "pytest-benchmark")
    assert "1 of 7 records have no valid figure" in left_out.stderr
    assert len(json.loads(left_out.stdout)["benchmarks"]) == 6


def test_tables_need_a_terminal_to_be_drawn(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from wattline.cli import output

    rows: list[tuple[Any, ...]] = [("a [b]", 1), ("long", None)]
    output.table(("name", "n"), rows, right=("n",))
    assert capsys.readouterr().out == "name   n\na [b]  1\nlong\n"
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    output.table(("name", "n"), rows, right=("n",))
    drawn = capsys.readouterr().out
    assert "a [b]" in drawn  # brackets are data, not markup
    assert len(drawn.splitlines()) > 3


def test_predict_ranks_alternatives(program: Program, learnable_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "p.wl"
    assert program("fit", learnable_run, "--out", bundle, "--no-scores").returncode == 0
    shape = ("gemm.dense", "m=256", "n=256", "k=256")
    done = program("predict", bundle, *shape, "dtype=fp32,bf16", "--best", "time", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(each["candidate"]["dtype"] for each in found["ranking"]) == ["bf16", "fp32"]
    times = [each["estimate"]["time_s"] for each in found["ranking"]]
    assert times == sorted(times)
    alone = json.loads(program("predict", bundle, *shape, "dtype=bf16", "--json").stdout)
    assert alone["time_s"] in times
    assert program("predict", bundle, *shape, "dtype=fp32", "--best", "time").stdout.startswith("  1  impl=torch: ")
    for goal, told in (("both", "no energy is known"), ("energy", "choose by time"), ("speed", "unknown goal 'speed'")):
        refused = program("predict", bundle, *shape, "dtype=fp32,bf16", "--best", goal)
        assert refused.returncode == 2
        assert told in refused.stderr
