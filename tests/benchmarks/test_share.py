"""How much of a run's wall time is spent measuring.

``pytest tests/benchmarks/test_share.py --benchmark-only`` runs preset ``standard`` once (some three minutes) through
the command line in a process of its own, and reads the share of the wall time, worker start and probe of the ceilings
included, that was spent inside warm-up or timed kernels.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(900)
def test_share_of_wall_time_inside_kernels(benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wattline.cli", "bench", "--preset", "standard", "--out", str(out), "--quiet"]
    done = benchmark.pedantic(
        subprocess.run, args=(command,), kwargs={"capture_output": True, "text": True}, rounds=1, iterations=1
    )
    assert done.returncode in (0, 1), done.stderr  # 1: some case failed, as cases may
    totals = json.loads((out / "run.json").read_text())["totals"]
    benchmark.extra_info |= {
        "kernel_share": round(totals["kernel_share"], 3),
        "run_wall_s": round(totals["wall_s"], 1),
        "records": totals["measured"],
    }
    print(f"\n{totals['kernel_share']:.1%} of {totals['wall_s']:.0f} s inside kernels, {totals['measured']} records")
