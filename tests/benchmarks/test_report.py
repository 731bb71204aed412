"""How long a report takes to write and to open, and how large it is: ``pytest tests/benchmarks -k report``.

Aims: 10 s and 2 MB for 1,000 records, opened in Chromium within a second; 20,000 records usable.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattline.case import Case
from wattline.device import Ceilings, DeviceSpec
from wattline.record import Record
from wattline.reports import write_report
from wattline.run import PlannedCase, Run, RunWriter
from wattline.stats import summarize
from wattline.work import bound
from wattline.workmodels import work_of

DEVICE = DeviceSpec(
    id="some-cpu", name="Some CPU", kind="cpu", memory_bytes=16e9, l2_bytes=16e6, sm_count=2,
    measured=Ceilings({"fp32": 1.8e11, "bf16": 3.0e11, "fp64": 9e10, "int8": 9e11}, 2.5e10, 2e-6),
)  # fmt: skip
COUNTS = (1000, 20_000)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def cases() -> Iterator[Case]:
    """Products: a grid, a fine line and skinny ones, in four formats; then the same again in larger batches."""
    batch = 0
    while True:
        batch += 1
        for dtype in ("fp32", "bf16", "fp64", "int8"):
            shapes = [(m, n, k) for m in (64, 256, 1024) for n in (128, 512, 2048) for k in (256, 1024)]
            shapes += [(512, n, 512) for n in range(448, 642, 6)] + [(m, 4096, 1024) for m in (1, 2, 4, 8, 16, 32, 64)]
            for m, n, k in shapes:
                params = {"batch": batch, "m": m, "n": n, "k": k, "dtype": dtype, "layout": "nn", "out_dtype": "same",
                          "acc": "default"}  # fmt: skip
                yield Case("gemm.dense", "torch", params, "hot" if (m + n) % 7 == 0 else "cold")


def write_run(folder: Path, cases: Iterable[PlannedCase], like: Record) -> Path:
    """A run of these cases: times between a third and nine tenths of what the roofline allows, thirty samples each."""
    rng = np.random.default_rng(3)
    made = []
    for i, planned in enumerate(cases):
        case = planned.case
        work = work_of(case.op, case.params)
        limit = bound(work, DEVICE, cached=case.regime == "hot")
        samples = (limit.time_s / rng.uniform(0.3, 0.9) + 3e-6) * (1 + 0.004 * rng.standard_normal(30))
        measured = replace(like.measurement, samples_s=tuple(map(float, samples)), stats=summarize(samples))
        made.append(replace(like, case=case, measurement=measured, work=work, device=DEVICE.id, sequence=i,
                            bound_s=limit.time_s, bound_by=limit.by, variant=planned.variant))  # fmt: skip
    manifest = {"device": DEVICE.to_dict(), "state": "complete", "totals": {"planned": len(made)}}
    with RunWriter.create(folder, manifest, [PlannedCase(r.case) for r in made[:1]]) as writer:
        writer_lines = "".join(record.to_json() + "\n" for record in made)
    (folder / "records.jsonl").write_text(writer_lines, encoding="utf-8")  # synced once, not for every record
    assert writer.path == folder
    return folder


@pytest.fixture(scope="module", params=COUNTS)
def run(request: Any, tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., Record]) -> Path:
    """A run of that many records of thirty samples, with its predictor."""
    from wattline.predictors import fit_run

    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    write_run(folder, map(PlannedCase, islice(cases(), request.param)), make_record(samples=[1e-3] * 30))
    if request.param <= COUNTS[0]:
        fit_run(folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., Record]) -> Path:
    """A run of everything that the preset ``standard`` plans for a CPU, with its predictor."""
    from wattline.predictors import fit_run
    from wattline.suites.plan import make_plan
    from wattline.suites.workload import Machine

    machine = Machine(kind="cpu", torch_version=(2, 13), memory_bytes=8 * 10**9, cache_bytes=16 * 10**6)
    planned = make_plan("standard", machine=machine).cases
    folder = write_run(tmp_path_factory.mktemp("runs") / "mixed", planned, make_record(samples=[1e-3] * 30))
    fit_run(folder)
    return folder


def test_writing(benchmark: Any, run: Path) -> None:
    began = time.process_time()
    path = benchmark.pedantic(write_report, args=(run,), rounds=1, iterations=1)
    cpu_s = time.process_time() - began  # what it takes on a machine that does nothing else
    records = int(run.name)
    size = path.stat().st_size
    benchmark.extra_info |= {"records": records, "megabytes": size / 1e6, "cpu_s": cpu_s}
    print(f"\n{records} records: {size / 1e6:.2f} MB, {cpu_s:.1f} s of processor time")
    assert size <= max(2e6, 600 * records)


def test_writing_a_mixed_run(benchmark: Any, mixed: Path) -> None:
    """Some fifty operations: as many records take longer than those of one, for each asks for figures of its own."""
    began = time.process_time()
    path = benchmark.pedantic(write_report, args=(mixed,), rounds=1, iterations=1)
    cpu_s = time.process_time() - began
    records = list(Run(mixed).records())
    ops, figures = len({record.case.op for record in records}), path.read_text(encoding="utf-8").count("<figure")
    size = path.stat().st_size
    benchmark.extra_info |= {"records": len(records), "megabytes": size / 1e6, "cpu_s": cpu_s, "ops": ops}
    print(f"\n{len(records)} records of {ops} operations, {figures} figures: {size / 1e6:.2f} MB, "
          f"{cpu_s:.1f} s of processor time")  # fmt: skip
    assert figures >= 20, "most operations answer a question of their own"
    assert size <= 2e6


def test_opening(benchmark: Any, run: Path) -> None:
    """From asking for the file to its last script, as Chromium itself says; least of five."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, server = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not server:
        pytest.skip("chromium or chromedriver is not installed")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    path = write_report(run)
    driver = selenium.Chrome(options=options, service=Service(server))
    try:
        times = []

        def open_it() -> None:
            driver.get("about:blank")
            driver.get(path.as_uri())
            script = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
            times.append(float(driver.execute_script(script)) / 1e3)

        benchmark.pedantic(open_it, rounds=5, iterations=1)
        scroll = driver.execute_async_script(
            "const done = arguments[0], box = document.querySelector('.scroll.tall'), took = []; let n = 0;"
            "const step = () => { const t = performance.now(); box.scrollTop += 997; requestAnimationFrame(() => {"
            " took.push(performance.now() - t); if (++n < 40) step(); else done(took); }); }; step();"
        )
        sort = driver.execute_script(
            "const t = performance.now(); document.querySelector('#table th[data-c=\"3\"] button').click();"
            "return performance.now() - t"
        )
        nodes = driver.execute_script("return document.querySelectorAll('*').length")
    finally:
        driver.quit()
    told = {"open_s": min(times), "frame_ms": statistics.median(scroll), "sort_ms": sort, "nodes": nodes}
    benchmark.extra_info |= {"records": int(run.name), **told}
    print(f"\n{run.name} records: {told}")
    assert nodes < 60_000, "the table draws what is in sight, the figures what can be told apart"
