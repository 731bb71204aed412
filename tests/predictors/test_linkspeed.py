"""Links that no datasheet knows: their speed is fitted to the training rows, bounds predictions and says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.device import Ceilings, DeviceSpec
from wattline.predictors import KernelPredictor
from wattline.predictors.linkspeed import measured_links
from wattline.predictors.physics import Machine
from wattline.predictors.table import blocks_of
from wattline.workmodels import work_of
from wattline.workmodels.collectives import busbw_factor, rounds

RATE = 6e9
SPEC = DeviceSpec(id="ranks", kind="cpu", measured=Ceilings({"fp32": 1e11}, 2e11, 2e-6))
SIZES = tuple(8 * 4**i for i in range(12))


def collectives(
    sizes: Sequence[int] = SIZES, *, device: str = "ranks", rate: float = RATE, noise: float = 0.05, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two collectives on 2, 4 and 8 ranks, 20 us a round."""
    rows = [
        {"op": f"collectives.{name}", "device": device, "impl": "torch", "dtype": "fp32", "regime": "hot",
         "bytes": size, "world_size": ranks, "backend": "gloo"}
        for name in ("all_reduce", "all_gather") for ranks in (2, 4, 8) for size in sizes
    ]  # fmt: skip
    X = pd.DataFrame(rows)
    name = X["op"].str.removeprefix("collectives.")
    factor = np.array([busbw_factor(op, ranks) for op, ranks in zip(name, X["world_size"], strict=True)])
    time = 20e-6 * rounds(X["world_size"].to_numpy()) + factor * X["bytes"].to_numpy() / rate
    return X, pd.DataFrame({"time_s": time * np.exp(noise * np.random.default_rng(seed).standard_normal(len(X)))})


def copies(spec: DeviceSpec, rate: float = 2e10) -> tuple[pd.DataFrame, pd.DataFrame]:
    X = pd.DataFrame(
        [{"op": op, "device": spec.id, "impl": "torch", "dtype": "int8", "bytes": 2**n, "chunk": 0, "memory": "pinned"}
         for op in ("offload.h2d", "offload.d2h") for n in range(12, 30)]
    )  # fmt: skip
    return X, pd.DataFrame({"time_s": 8e-6 + X["bytes"] / rate})


@pytest.fixture(scope="module")
def learned() -> tuple[pd.DataFrame, pd.DataFrame, KernelPredictor]:
    X, y = collectives()
    return X, y, KernelPredictor({"ranks": SPEC}, effort=0.1).fit(X, y)


def test_the_bound_of_collectives_is_of_the_fitted_link(
    learned: tuple[pd.DataFrame, pd.DataFrame, KernelPredictor],
) -> None:
    X, y, p = learned
    speed = p.devices_["ranks"].link_speed("fabric")
    assert speed == pytest.approx(RATE, rel=0.15)
    found = p.predict(X)
    assert (found["bound_s"] <= y["time_s"] * (1 + 1e-9)).all()
    large = X["bytes"] == SIZES[-1]
    assert set(found.loc[large, "bound_by"]) == {"link"}
    # By hand: 2 * 3/4 of a gibibyte over that link, at 16 times the largest size that was measured.
    e = p.predict_one(op="collectives.all_reduce", world_size=4, bytes=2**30)
    assert e.bound_s == pytest.approx(1.5 * 2**30 / (speed or 0))
    assert e.bound_by == "link"
    assert not e.in_domain
    assert e.time_lo_s >= e.bound_s
    assert e.time_s == pytest.approx(40e-6 + 1.5 * 2**30 / RATE, rel=0.25)
    assert "fabric" in str(e.explain())
    assert "fitted to measured transfers, not a datasheet's" in str(e.explain())
    assert p.provenance_["links"]["ranks"]["fabric"]["bandwidth"] == speed
    assert p.provenance_["links"]["ranks"]["fabric"]["lines"] == 6


def test_a_bundle_keeps_the_link(
    learned: tuple[pd.DataFrame, pd.DataFrame, KernelPredictor], tmp_path: Path
) -> None:
    X, _, p = learned
    p.save(tmp_path / "p.wl")
    again = KernelPredictor.load(tmp_path / "p.wl")
    assert again.devices_ == p.devices_
    pd.testing.assert_frame_equal(again.predict(X), p.predict(X))
    # A description that was written before links were measured.
    data = SPEC.to_dict()
    del data["measured"]["links"]
    assert DeviceSpec.from_dict(data).link_speed("fabric") is None


def test_what_a_datasheet_says_is_not_replaced() -> None:
    X, y = collectives(SIZES[-5:])
    listed = dataclasses.replace(SPEC, link_bandwidth=2 * RATE)
    p = KernelPredictor({"ranks": listed}, effort=0.1).fit(X, y)
    assert p.devices_["ranks"] == listed
    assert "links" not in p.provenance_
    e = p.predict_one(op="collectives.all_gather", world_size=2, bytes=2**24)
    assert e.bound_s == pytest.approx(2**23 / (2 * RATE))
    assert not any("link" in note for note in e.explain().notes)


def test_small_messages_say_nothing_of_the_link() -> None:
    X, y = collectives(SIZES[:5])
    p = KernelPredictor({"ranks": SPEC}, effort=0.1).fit(X, y)
    assert p.devices_["ranks"].link_speed("fabric") is None
    e = p.predict_one(op="collectives.all_reduce", world_size=2, bytes=2**30)
    assert e.bound_by != "link"
    assert "the link (fabric) bounds nothing: its speed is neither listed nor measured" in e.explain().notes


def test_copies_between_host_and_device() -> None:
    box = DeviceSpec(id="box", kind="gpu", peak_flops={"int8": 1e14}, memory_bandwidth=3e12, l2_bytes=5e7)
    X, y = copies(box)
    # Of one link never measured nothing is made up.
    assert Machine(box).spec.link_speed("pcie") is None
    p = KernelPredictor({"box": box}, effort=0.1).fit(X, y)
    assert p.devices_["box"].link_speed("pcie") == pytest.approx(2e10, rel=1e-3)
    assert (p.predict(X)["bound_s"] <= y["time_s"] * (1 + 1e-9)).all()
    e = p.predict_one(op="offload.h2d", bytes=2**30, chunk=0, memory="pinned")
    assert (e.bound_s, e.bound_by) == (pytest.approx(2**30 / 2e10, rel=1e-3), "link")
    assert "pcie" in str(e.explain())
    # Nothing was learned of swapping, but the link is the same.
    asked = {"op": "offload.swap", "device": "box", "dtype": "int8", "blocks": 1000, "block_bytes": 65536}
    other = p.predict_one(**asked)
    assert other.source == "analytical"
    assert other.bound_s == pytest.approx(work_of("offload.swap", asked).link_bytes["pcie"] / 2e10, rel=1e-3)
    unfitted = KernelPredictor({"box": box}, effort=0.1).fit(*collectives(SIZES[-4:], device="box"))
    assert unfitted.predict_one(**asked).bound_by != "link"


def test_only_a_new_device_is_given_a_link_by_adapting(
    learned: tuple[pd.DataFrame, pd.DataFrame, KernelPredictor],
) -> None:
    _, _, p = learned
    X, y = collectives(SIZES[4:], rate=3 * RATE, seed=1)
    before = p.devices_["ranks"]
    assert p.adapt(X, y).devices_["ranks"] == before
    q = KernelPredictor({"ranks": SPEC, "other": dataclasses.replace(SPEC, id="other")}, effort=0.1)
    q = q.fit(*collectives()).adapt(*collectives(SIZES[4:], device="other", rate=3 * RATE, seed=1))
    assert q.devices_["ranks"] == before
    assert q.devices_["other"].link_speed("fabric") == pytest.approx(3 * RATE, rel=0.15)
    assert set(q.provenance_["links"]) == {"ranks", "other"}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.floats(1e6, 1e12))
def test_no_measurement_is_below_the_bound(seed: int, noise: float, rate: float) -> None:
    X, y = collectives(rate=rate, noise=noise, seed=seed)
    time = y["time_s"].to_numpy()
    found = measured_links(blocks_of(X), time, lambda device: Machine(SPEC))
    for speed in (found.get("ranks") or {}).values():
        factor = np.array([busbw_factor(op[12:], n) for op, n in zip(X["op"], X["world_size"], strict=True)])
        assert (factor * X["bytes"].to_numpy() / speed.bandwidth <= time * (1 + 1e-9)).all()
