"""Presets: the built-in ones, composition, and files that users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattline.errors import ParamError, SchemaError, StorageError, UnknownNameError, UsageError
from wattline.suites.presets import list_presets, load_preset

BASE = """
description = "below"
budget = "10m"
budget_total = "20m"
aa = 2
[measure]
time_limit_s = 0.9
[sweep.one]
op = "gemm.dense"
shapes = { source = "squares", sizes = "128:512:x2" }
fixed = { dtype = "fp32", layout = "nt" }
where = ["m > 1"]
[sweep.two]
op = "gemm.dense"
regime = ["hot", "eager"]
product = { m = "1,2", dtype = ["fp32"] }
[overlay.gpu.sweep.one]
shapes = { sizes = 4096 }
[overlay.cuda]
aa = 5
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "below.toml"
    path.write_text(BASE)
    return path


def test_the_built_in_presets_are_listed_and_load_for_every_kind() -> None:
    found = list_presets()
    assert list(found) == ["smoke", "quick", "standard", "full", "llm"]
    assert all(found.values())
    for name in found:
        for kind in ("cpu", "cuda", "xpu"):
            preset = load_preset(name, kind)
            assert preset.sweeps
            assert preset.budget_s is not None
            assert preset.budget_total_s is not None
            assert preset.budget_s <= preset.budget_total_s


def test_overlays_change_sizes_and_limits(base: Path) -> None:
    cpu, cuda, xpu = (load_preset(base, kind) for kind in ("cpu", "cuda", "xpu"))
    assert [p.sweeps[0].shapes["sizes"] for p in (cpu, cuda, xpu)] == ["128:512:x2", 4096, 4096]
    assert [p.aa for p in (cpu, cuda, xpu)] == [2, 5, 2]
    assert cpu.sweeps[0].shapes["source"] == cuda.sweeps[0].shapes["source"] == "squares"
    assert (cpu.budget_s, cpu.budget_total_s) == (600, 1200)
    assert cpu.measure.time_limit_s == 0.9
    assert cpu.sweeps[1].regime == ("hot", "eager")


def test_extending_merges_tables_and_replaces_the_rest(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "above.toml"
    path.write_text(
        """
extends = "below.toml"
budget = "30s"
[measure]
precision = 0.05
[sweep.one]
product = { dtype = ["bf16", "int8"] }
where = []
[sweep.two]
enabled = false
[sweep.three]
op = "gemm.dense"
shapes = { source = "line" }
"""
    )
    preset = load_preset(path, "cpu")
    assert preset.budget_s == 30
    assert preset.budget_total_s is None, "the total of another budget says nothing of this one"
    assert preset.aa == 2
    assert (preset.measure.precision, preset.measure.time_limit_s) == (0.05, 0.9)
    one, three = preset.sweeps
    assert (one.name, three.name) == ("one", "three")
    # dtype moved from fixed to product; layout stayed.
    assert dict(one.fixed) == {"layout": "nt"}
    assert dict(one.product) == {"dtype": ["bf16", "int8"]}
    assert one.where == ()


def test_another_shape_source_brings_its_own_arguments(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "above.toml"
    path.write_text('extends = "below.toml"\n[sweep.one]\nshapes = { source = "line", axis = "k" }\n')
    assert dict(load_preset(path, "cpu").sweeps[0].shapes) == {"source": "line", "axis": "k"}


def test_a_preset_may_extend_a_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "smoke"\naa = 0\n')
    mine, smoke = load_preset(path, "cpu"), load_preset("smoke", "cpu")
    assert mine.sweeps == smoke.sweeps
    assert mine.aa == 0


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("budgget = 1", UnknownNameError, "budget"),
        ("[measure]\nprecison = 0.1", UnknownNameError, "precision"),
        ('[sweep.a]\nop = "gemm.dense"\nregimes = "hot"', UnknownNameError, "regime"),
        ("[overlay.gpu]\nsweeep = 1", UnknownNameError, "sweep"),
        ("aa = -1", ParamError, "aa"),
        ("aa = true", ParamError, "aa"),
        ('budget = "soon"', ParamError, "soon"),
        ("[sweep.a]\nregime = 'hot'", SchemaError, "no op"),
        ('[sweep.a]\nop = "gemm.dense"\nwhere = 3', SchemaError, "where"),
        ('[sweep.a]\nop = "gemm.dense"\nfixed = 3', SchemaError, "fixed"),
        ('[sweep.a]\nop = "gemm.dense"\nenabled = "no"', SchemaError, "enabled"),
        ("sweep = 3", SchemaError, "sweep"),
        ("[[sweep]]\nop = 'gemm.dense'", SchemaError, "sweep"),
        ("overlay = 3", SchemaError, "overlay"),
        ("extends = ['a', 'b']", SchemaError, "extends"),
        ("extends = 'smok'", UnknownNameError, "smoke"),
        ("a = = 1", SchemaError, "TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(error, match=words):
        load_preset(path, "cpu")


def test_files_that_are_not_there_or_go_in_circles(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="reading"):
        load_preset(tmp_path / "none.toml", "cpu")
    with pytest.raises(UnknownNameError, match="standard"):
        load_preset("standart", "cpu")
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(UsageError, match="extends itself"):
        load_preset(tmp_path / "a.toml", "cpu")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SchemaError, match="not text"):
        load_preset(binary, "cpu")
