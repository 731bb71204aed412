"""Operations without features of their own: their parameters, truth values and the details of their work model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline import workmodels
from wattline.device import DeviceSpec
from wattline.errors import ParamError
from wattline.predictors import KernelPredictor
from wattline.work import Work

OP = "made.up"
BOX = DeviceSpec(id="box", kind="cpu", peak_flops={"fp32": 1e11}, memory_bandwidth=1e10, l2_bytes=1e6)


def work(p: Mapping[str, Any]) -> Work:
    """Stands for an operation that pads its rows to whole tiles, but only if asked to."""
    size, tile = p["size"], p["tile"]
    padded = -(-size // tile) * tile if p["pad"] else size
    return Work({"fp32": 2.0 * size**2}, {"device": 8.0 * size}, details={"padded_flops": 2.0 * padded**2})


@pytest.fixture
def op() -> Iterator[str]:
    workmodels.register(OP, work)
    yield OP
    del workmodels._REGISTERED[OP]


def table(op: str, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    rows = [
        {"op": op, "device": "box", "impl": "torch", "dtype": "fp32", "size": int(s), "tile": int(t), "pad": bool(pad)}
        for s, t, pad in zip(
            2 ** rng.uniform(5, 12, 160), rng.choice([64, 128, 256, 1024], 160), rng.random(160) < 0.5, strict=True
        )
    ]
    # The time follows what is padded: a detail, which bounds nothing.
    time = [5e-6 + work(row).details["padded_flops"] / 3e10 for row in rows]
    return pd.DataFrame(rows), pd.DataFrame({"time_s": time})


def test_details_of_the_work_explain_what_flops_do_not(op: str, tmp_path: Path) -> None:
    X, y = table(op)
    p = KernelPredictor({"box": BOX}).fit(X, y)
    asked, truth = table(op, seed=1)
    found = p.predict(asked)
    error = np.abs(found["time_s"] / truth["time_s"] - 1)
    assert error.median() < 0.1
    assert "log_padded_flops" in next(iter(p.models_.values())).encoder.names
    p.save(tmp_path / "p.wl")
    again = KernelPredictor.load(tmp_path / "p.wl")
    pd.testing.assert_frame_equal(again.predict(asked), found)
    one = again.predict_one(op=op, device="box", dtype="fp32", size=100, tile=64, pad=True)
    frame = pd.DataFrame([{**X.iloc[0].to_dict(), "size": 100, "tile": 64, "pad": True}])
    assert one.time_s == pytest.approx(again.predict(frame)["time_s"].iloc[0], rel=1e-6)


def test_a_missing_parameter_is_named(op: str) -> None:
    X, y = table(op)
    p = KernelPredictor({"box": BOX}).fit(X, y)
    with pytest.raises(ParamError, match="'tile' is missing"):
        p.predict_one(op=op, device="box", dtype="fp32", size=100, pad=False)
    with pytest.raises(ParamError, match="'tile' is missing"):
        p.predict(X.drop(columns="tile"))
