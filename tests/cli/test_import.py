"""`wattline import` and `wattline fit --data`: what they write and print, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattline.cli.main import main
from wattline.predictors import load, read_data

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def told(capsys: Capture) -> Callable[..., str]:
    """Calls the command line in this process; returns stdout, and fails on any other exit code than 0."""

    def call(*args: str | Path) -> str:
        found = main([str(arg) for arg in args])
        shown = capsys.readouterr()
        assert found == 0, shown.err
        return shown.out

    return call


@pytest.fixture
def failed(capsys: Capture) -> Callable[..., str]:
    """Calls the command line; returns the lines of its error."""

    def call(*args: str | Path) -> str:
        assert main([str(arg) for arg in args]) == 2
        return capsys.readouterr().err

    return call


def products(path: Path, rows: int = 60, device: str = "Tesla T4") -> Path:
    """A NeuSight table of products on a GPU that takes 5 us and 6 TFLOP/s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    lines = ["OPName,Latency,Device,B,M,N,K"]
    for m, n, k in np.round(2 ** rng.uniform(4, 10, (rows, 3))).astype(int):
        lines.append(f"bmm,{1e3 * (5e-6 + 2.0 * m * n * k / 6e12)},{device},1,{m},{n},{k}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_becomes_data_and_a_summary_in_80_columns(told: Callable[..., str], tmp_path: Path) -> None:
    path = products(tmp_path / ("a-rather-long-name-of-a-table-" * 3 + ".csv"))
    path.write_text(path.read_text() + "embedding,1,Tesla T4,1,1,1,1\n")
    shown = told("import", path, "--out", tmp_path / "t.parquet")
    assert all(len(line) <= 80 for line in shown.splitlines()[:-1])  # the last is the path that was asked for
    for words in ("60 of 61", "1: operations without a counterpart", "gemm.dense 60", "t4 60", "fp32 60", "MIT"):
        assert words in shown
    data = read_data(tmp_path / "t.parquet")
    assert len(data.frame) == 60
    assert data.facts[0].format == "neusight"


def test_many_files_into_one_or_into_a_folder(told: Callable[..., str], tmp_path: Path) -> None:
    one, two = products(tmp_path / "a" / "bmm.csv"), products(tmp_path / "b" / "bmm.csv", 10)
    told("import", one, two, "--out", tmp_path / "all.parquet")
    both = read_data(tmp_path / "all.parquet")
    assert (len(both.frame), [facts.rows for facts in both.facts]) == (70, [60, 10])
    written = told("import", one, two, "--out", tmp_path / "folder", "--quiet").split()
    assert [Path(name).name for name in written] == ["a-bmm.data.parquet", "b-bmm.data.parquet"]
    assert [len(read_data(name).frame) for name in written] == [60, 10]
    # Data that were imported may be put together once more, and still say where they come from.
    shown = told("import", *written, "--out", tmp_path / "again.parquet")
    assert shown.count("bmm.csv: NeuSight") == 2
    again = read_data(tmp_path / "again.parquet")
    assert [facts.sha256 for facts in again.facts] == [facts.sha256 for facts in both.facts]
    assert len(again.frame) == 70


def test_json_holds_all_of_the_summary(told: Callable[..., str], tmp_path: Path) -> None:
    shown = told("import", products(tmp_path / "bmm.csv"), "--out", tmp_path / "t.parquet", "--json")
    (entry,) = json.loads(shown)
    assert (entry["rows"], entry["counts"]["op"]) == (60, {"gemm.dense": 60})
    assert entry["sources"][0]["licence"] == "MIT"
    assert entry["data"] == str(tmp_path / "t.parquet")


def test_devices_by_flag_and_by_file(told: Callable[..., str], failed: Callable[..., str], tmp_path: Path) -> None:
    path = products(tmp_path / "bmm.csv", 20, "My GPU")
    out = tmp_path / "t.parquet"
    shown = failed("import", path, "--out", out)
    assert "unknown device 'My GPU' in" in shown
    assert "--device 'My GPU=h200-sxm'" in shown
    assert not out.exists()
    told("import", path, "--out", out, "--device", "My GPU=h200-sxm")
    assert set(read_data(out).frame["device"]) == {"h200-sxm"}
    told("import", path, "--out", out, "--device", "t4")
    assert set(read_data(out).frame["device"]) == {"t4"}
    spec = tmp_path / "mine.json"
    spec.write_text(json.dumps({"id": "mine", "name": "My GPU", "peak_flops": {"fp32": 6e12}}))
    told("import", path, "--out", out, "--device-spec", spec)
    assert set(read_data(out).devices) == {"mine"}
    spec.write_text("{")
    assert "is not JSON" in failed("import", path, "--out", out, "--device-spec", spec)
    spec.write_text('{"id": "mine", "tflops": 6}')
    assert "no field 'tflops'" in failed("import", path, "--out", out, "--device-spec", spec)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "neusite"], "unknown import format 'neusite'"),
        (["--set", "bytes=1M"], "unknown fact 'bytes' of the format neusight"),
        (["--set", "bytes"], "cannot read 'bytes'"),
        (["--device", "=t4"], "cannot read --device =t4"),
        (["--device", "t4", "--device", "l4"], "--device names the device twice"),
    ],
)
def test_wrong_flags(failed: Callable[..., str], tmp_path: Path, flags: list[str], words: str) -> None:
    assert words in failed("import", products(tmp_path / "bmm.csv"), "--out", tmp_path / "o.parquet", *flags)
    assert not (tmp_path / "o.parquet").exists()


def test_it_never_writes_over_what_it_reads(failed: Callable[..., str], tmp_path: Path) -> None:
    path = products(tmp_path / "bmm.parquet")  # whatever it is called
    assert "is one of the files to import" in failed("import", path, "--out", path)


def test_fit_on_data_alone(told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told("import", products(tmp_path / "bmm.csv"), "--quiet")
    shown = told("fit", "--data", "bmm.data.parquet", "--folds", "2")
    assert "error of time on shapes left out" in shown
    assert "gemm.dense" in shown
    model = load(tmp_path / "predictor.wl")
    assert model.provenance_["data"][0]["licence"] == "MIT"
    assert "NeuSight" in model.provenance_["source"]
    assert model.provenance_["evaluation"]["mape"] < 25
    assert model.predict_one(op="gemm.dense", m=256, n=256, k=256).time_s == pytest.approx(1e-5, rel=0.2)


def test_fit_on_runs_and_data(told: Callable[..., str], learnable_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.parquet"
    told("import", products(tmp_path / "bmm.csv"), "--out", data)
    shown: Any = json.loads(
        told("fit", learnable_run, "--data", data, "--no-scores", "--json", "--out", tmp_path / "p.wl")
    )
    assert shown["rows"] == 160 + 60
    assert (shown["devices"], shown["data"]) == (["cpu-example-2c", "t4"], ["bmm.csv"])
    assert set(load(tmp_path / "p.wl").devices_) == {"cpu-example-2c", "t4"}


def test_fit_says_why_there_are_no_scores(told: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    rows = [f"softmax.rows,t4,torch,fp32,64,64,{1e-5 + 1e-7 * i}" for i in range(10)]
    path.write_text("\n".join(["op,device,impl,dtype,rows,cols,time_s", *rows]))
    told("import", path, "--out", tmp_path / "d.parquet")
    shown = told("fit", "--data", tmp_path / "d.parquet", "--out", tmp_path / "p.wl")
    assert "no scores: all rows form one group" in shown


def test_fit_refuses_what_is_no_data(failed: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing to fit on" in failed("fit")
    shown = failed("fit", "--data", products(tmp_path / "bmm.csv"))
    assert "holds no imported data" in shown
    assert "wattline import" in shown
