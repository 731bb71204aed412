"""Bundles: what goes in comes out; damaged, truncated, foreign and newer files are refused; no code is run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.errors import BundleError, UnknownNameError
from wattline.predictors import KernelPredictor, load
from wattline.predictors.bundle import read_bundle
from wattline.predictors.shelf import shipped


@pytest.fixture
def saved(fitted: KernelPredictor, tmp_path: Path) -> Path:
    path = tmp_path / "some.wl"
    fitted.save(path)
    return path


def test_what_goes_in_comes_out(fitted: KernelPredictor, table: Any, saved: Path) -> None:
    back = load(saved)
    pd.testing.assert_frame_equal(back.predict(table.X), fitted.predict(table.X), rtol=1e-5)
    assert back.get_params()["random_state"] == fitted.random_state
    assert back.devices_ == fitted.devices_
    assert back.provenance_ == fitted.provenance_
    one, two = (p.estimate("gemm.dense", m=99, n=98, k=97, dtype="bf16") for p in (back, fitted))
    assert one.time_s == pytest.approx(two.time_s, rel=1e-5)
    assert [r["m"] for r in one.explain().nearest] == [r["m"] for r in two.explain().nearest]


def test_the_network_and_transfer_come_back(large_fit: tuple[Any, KernelPredictor], tmp_path: Path) -> None:
    table, model = large_fit
    model.save(tmp_path / "n.wl")
    asked = table.X.assign(device=np.where(table.X.index % 3 == 0, "h100-sxm", table.X["device"]))
    pd.testing.assert_frame_equal(load(tmp_path / "n.wl").predict(asked), model.predict(asked), rtol=1e-4)
    assert (tmp_path / "n.wl").stat().st_size < 1_000_000


def test_an_adapted_predictor_comes_back(
    fitted: KernelPredictor, table_of: Callable[..., Any], tmp_path: Path
) -> None:
    slow = table_of(60, 20, slow=1.4)
    adapted = fitted.adapt(slow.X, slow.y)
    adapted.save(tmp_path / "a.wl")
    pd.testing.assert_frame_equal(load(tmp_path / "a.wl").predict(slow.X), adapted.predict(slow.X), rtol=1e-5)


def test_it_carries_its_provenance(saved: Path) -> None:
    _, arrays, head = read_bundle(saved)
    assert head["format"] == "wattline-predictor"
    assert head["wattline"]
    assert head["created_at"]
    told = head["provenance"]
    assert told["rows"] == 200
    assert told["devices"] == ["box"]
    assert told["ops"] == ["gemm.dense"]
    assert told["scores"]["gemm"]["groups"] == 100
    assert "held_out_error" in told["scores"]["gemm"]
    assert all(a.dtype != object for a in arrays.values())


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BundleError, match="not a predictor bundle"):
        load(saved)


def test_flipped_bits_are_found(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data) // 2, 12):
        spoiled = data.copy()
        spoiled[position] ^= 0xFF
        saved.write_bytes(bytes(spoiled))
        # A byte of a name or date in the archive's own headers may be of no consequence; a figure never is.
        try:
            model = load(saved)
        except BundleError:
            continue
        assert model.estimate("gemm.dense", m=64, n=64, k=64, dtype="bf16").time_s > 0


def test_a_changed_member_fails_its_checksum(saved: Path) -> None:
    parts = members(saved)
    name = next(n for n in parts if n.endswith("dual.npy") or n.endswith("weights.npy"))
    parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1])
    with pytest.raises(BundleError, match="checksum"):
        load(rewrite(saved, parts))
    del parts[name]
    with pytest.raises(BundleError, match="damaged"):
        load(rewrite(saved, parts))


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps({"a": 1}), json.dumps({"format": "wattline-predictor"}).encode()]
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.wl").write_bytes(content)
    with pytest.raises(BundleError, match="not a predictor bundle"):
        load(tmp_path / "x.wl")


def test_a_foreign_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a predictor bundle"):
        load(rewrite(tmp_path / "x.wl", {"word/document.xml": b"<a/>"}))
    with pytest.raises(BundleError, match="format"):
        load(rewrite(tmp_path / "y.wl", {"wattline.json": b'{"format": "other", "version": 1}'}))
    with pytest.raises(BundleError, match="damaged"):
        load(rewrite(tmp_path / "z.wl", {"wattline.json": b"{not json"}))


def test_a_newer_bundle_says_upgrade(saved: Path) -> None:
    parts = members(saved)
    head = json.loads(parts["wattline.json"])
    parts["wattline.json"] = json.dumps({**head, "version": 99, "wattline": "9.9"}).encode()
    with pytest.raises(BundleError, match="version 99") as caught:
        load(rewrite(saved, parts))
    assert "upgrade" in caught.value.todo
    assert "9.9" in caught.value.why


def test_pickled_arrays_are_never_run(saved: Path, tmp_path: Path) -> None:
    import hashlib

    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    parts = members(saved)
    name = next(n for n in parts if n.endswith("weights.npy"))
    head = json.loads(parts["wattline.json"])
    head["sha256"][name] = hashlib.sha256(buffer.getvalue()).hexdigest()
    parts |= {name: buffer.getvalue(), "wattline.json": json.dumps(head).encode()}
    with pytest.raises(BundleError, match="damaged"):
        load(rewrite(saved, parts))
    assert not witness.exists()


def test_facts_that_make_no_sense_are_refused(saved: Path) -> None:
    import hashlib

    parts = members(saved)
    head = json.loads(parts["wattline.json"])
    parts["model.json"] = b'{"models": {"gemm": {}}, "devices": {}}'
    head["sha256"]["model.json"] = hashlib.sha256(parts["model.json"]).hexdigest()
    parts["wattline.json"] = json.dumps(head).encode()
    with pytest.raises(BundleError, match="does not make sense"):
        load(rewrite(saved, parts))


def signed(parts: dict[str, bytes], **changed: bytes) -> dict[str, bytes]:
    """Members with some of them exchanged, their checksums put right: what only the reader's own checks can find."""
    import hashlib

    out = {**parts, **changed}
    head = json.loads(out["wattline.json"])
    head["sha256"] = {name: hashlib.sha256(out[name]).hexdigest() for name in head["sha256"] if name in out}
    return {**out, "wattline.json": json.dumps(head).encode()}


def an_array_of(parts: dict[str, bytes]) -> str:
    return next(name for name in parts if name.startswith("arrays/"))


def test_what_unpacks_to_more_than_any_bundle_is_refused_before_it_is_unpacked(saved: Path) -> None:
    parts = members(saved)
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("wattline.json", "w") as out:
        for _ in range(520):
            out.write(bytes(2**20))  # half a gigabyte of zeros, half a megabyte packed
    assert saved.stat().st_size < 2**20
    with pytest.raises(BundleError, match="too large"):
        load(saved)
    bomb = rewrite(saved, signed(parts)).read_bytes()
    name = an_array_of(parts)
    entry = bomb.rindex(name.encode()) - 46  # its place in the archive's directory, which says how long it is
    saved.write_bytes(bomb[: entry + 24] + (2**31).to_bytes(4, "little") + bomb[entry + 28 :])
    with pytest.raises(BundleError, match="too large"):
        load(saved)
    with open(saved, "wb") as sparse:
        sparse.truncate(2**30)
    with pytest.raises(BundleError, match="too large"):
        load(saved)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }", "an array of"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, -3), }", "an array of"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "objects"),
        (b"__import__('os').system('true')", "malformed"),
        (b"{'descr': '<f8', ((", "header"),
    ],
    ids=["huge", "negative", "objects", "code", "open"],
)
def test_an_array_that_lies_about_itself_is_refused(saved: Path, header: bytes, why: str) -> None:
    parts = members(saved)
    padded = header + b" " * (117 - len(header)) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(48)
    with pytest.raises(BundleError, match="damaged") as caught:
        load(rewrite(saved, signed(parts, **{an_array_of(parts): data})))
    assert why in caught.value.why


def test_endless_nesting_and_secret_members_are_refused(saved: Path) -> None:
    parts = members(saved)
    deep = b"[" * 200_000
    for name in ("model.json", "wattline.json"):
        with pytest.raises(BundleError, match="damaged"):
            load(rewrite(saved, signed(parts, **{name: deep}) if name == "model.json" else {**parts, name: deep}))
    locked = bytearray(rewrite(saved, parts).read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = locked.find(mark)
        while at >= 0:
            locked[at + flags] |= 1  # encrypted, says the archive
            at = locked.find(mark, at + 4)
    saved.write_bytes(locked)
    with pytest.raises(BundleError, match="damaged"):
        load(saved)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), value=st.integers(0, 255), length=st.integers(1, 64))
def test_no_spoiled_stretch_of_the_file_makes_another_error(
    saved: Path, share: float, value: int, length: int
) -> None:
    whole = saved.read_bytes()
    at = int(share * (len(whole) - length))
    spoiled = saved.with_name("spoiled.wl")
    spoiled.write_bytes(whole[:at] + bytes([value]) * length + whole[at + length :])
    try:
        model = load(spoiled)
    except BundleError:
        return
    assert model.estimate("gemm.dense", m=64, n=64, k=64, dtype="bf16").time_s > 0


def test_where_load_looks(fitted: KernelPredictor, tmp_path: Path) -> None:
    fitted.save(tmp_path / "predictor.wl")
    ask: dict[str, Any] = {"m": 64, "n": 64, "k": 64, "dtype": "bf16"}
    assert load(tmp_path).estimate("gemm.dense", **ask) == load(str(tmp_path / "predictor.wl")).estimate(
        "gemm.dense", **ask
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="holds no predictor"):
        load(tmp_path / "empty")
    with pytest.raises(BundleError, match="no predictor at"):
        load(tmp_path / "none.wl")
    assert "no-such-bundle" not in shipped()
    with pytest.raises(UnknownNameError, match="no-such-bundle"):
        load("no-such-bundle")


def test_loading_and_asking_loads_numpy_alone(saved: Path, python_json: Callable[..., Any]) -> None:
    code = """
import json, sys
from wattline.predictors import load
estimate = load(sys.argv[1]).predict_one(op="gemm.dense", m=64, n=64, k=64, dtype="bf16")
assert estimate.time_s > 0
heavy = ("torch", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "numba")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    assert python_json(code, saved) == []
