"""How long a fresh process takes until a bundle is loaded and has answered, beside the import of numpy, which it needs.

Run with ``pytest tests/benchmarks/test_bundle.py --benchmark-only``. Seconds are those that the process itself spent
(``process_time``), so that other programs on the machine do not count; ``extra_info`` holds the medians of both and the
time of loading alone. The goal is 100 ms for loading.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.device import DeviceSpec
from wattline.predictors import KernelPredictor

ROUNDS = 12
CODE = """
import json, sys, time
begin = time.process_time()
import numpy
numpy_s = time.process_time() - begin
from wattline.predictors import load
model = load(sys.argv[1])
load_s = time.process_time() - begin - numpy_s
model.predict_one(op="gemm.dense", m=64, n=64, k=64)
print(json.dumps({"numpy_s": numpy_s, "load_s": load_s, "whole_s": time.process_time() - begin}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor with a network, as a few thousand rows give it."""
    rng = np.random.default_rng(0)
    sizes = np.round(2 ** rng.uniform(5, 12, (3000, 3))).astype(int)
    X = pd.DataFrame(sizes, columns=["m", "n", "k"]).assign(op="gemm.dense", device="box", impl="torch", dtype="fp32")
    time = 5e-6 + 2.0 * sizes.prod(axis=1) / 8e12
    spec = DeviceSpec.from_dict({"id": "box", "peak_flops": {"fp32": 1e13}, "memory_bandwidth": 1e12, "sm_count": 80})
    path = tmp_path_factory.mktemp("bundle") / "p.wl"
    KernelPredictor({"box": spec}, effort=0.25).fit(X, pd.DataFrame({"time_s": time})).save(path)
    return path


def test_load_in_a_fresh_process(benchmark: Any, bundle: Path) -> None:
    found: list[dict[str, float]] = []

    def once() -> None:
        done = subprocess.run([sys.executable, "-c", CODE, str(bundle)], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))

    once()  # writes the bytecode, where Python is let
    found.clear()
    benchmark.pedantic(once, rounds=ROUNDS, iterations=1)
    medians = {name: statistics.median(each[name] for each in found) for name in found[0]}
    benchmark.extra_info |= {**medians, "bytes": bundle.stat().st_size, "goal_load_s": 0.1}
    assert len(found) == ROUNDS
