"""The runner with real worker processes: every fault becomes a record, and the run goes on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.errors import RunLockedError, UsageError
from wattline.record import Record
from wattline.run import PlannedCase, Run
from wattline.suites.plan import Plan
from wattline.suites.runner import Observer, Outcome, resume_bench, run_bench
from wattline.suites.settings import MeasureSettings
from wattline.suites.signals import StopRequests

pytestmark = pytest.mark.usefixtures("plugin")
MakePlan = Callable[..., Plan]


class Watching(Observer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[str] = []
        self.records: list[Record] = []
        self.started: list[int] = []
        self.devices: list[DeviceSpec] = []
        self.outcomes: list[Outcome] = []

    def run_started(
        self, *, path: Path, device: DeviceSpec, planned: int, done: int, budget_s: float | None
    ) -> None:
        self.devices.append(device)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def case_started(self, index: int, planned: PlannedCase) -> None:
        self.started.append(index)

    def case_progress(self, phase: str, time_s: float | None, precision: float | None) -> None:
        self.phases.append(phase)

    def case_ended(self, record: Record) -> None:
        self.records.append(record)

    def run_ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def statuses(path: Path) -> list[tuple[str, str]]:
    return [(r.case.op.removeprefix("faulty."), r.status) for r in Run(path).records()]


def test_every_fault_becomes_a_record_and_the_run_goes_on(plan_of: MakePlan, tmp_path: Path) -> None:
    faults = {
        "steady": "ok", "nan": "failed", "unwritten": "failed", "raises": "failed", "crash": "crashed",
        "crash_once": "ok", "memory": "out_of_memory", "sticky": "failed", "chatty": "ok", "hang": "timeout",
    }  # fmt: skip
    watching = Watching()
    settings = MeasureSettings(min_time_s=0.02, time_limit_s=0.05, warmup_limit_s=0.02, min_samples=3, deadline_s=2.0)
    plan = plan_of(*faults, "steady", settings=settings)
    outcome = run_bench(plan, tmp_path / "run", device="cpu", observer=watching)

    assert statuses(tmp_path / "run") == [*faults.items(), ("steady", "ok")]
    assert (outcome.state, outcome.exit_code, outcome.done) == ("complete", 1, 11)
    by_op = {r.case.op.removeprefix("faulty."): r for r in Run(tmp_path / "run").records()}
    for op in ("nan", "unwritten"):
        assert by_op[op].reason is not None
        assert by_op[op].reason.code == "check_failed"
        assert "nan" in by_op[op].reason.message
        assert not by_op[op].valid
    assert "SIGSEGV" in by_op["crash"].reason.message
    assert "no such luck" in by_op["raises"].reason.message
    assert by_op["sticky"].reason.code == "device_error"
    assert by_op["hang"].reason.code == "hung"
    assert any("trying the case again" in note for note in watching.notes)
    assert [r.identity for r in watching.records] == [r.identity for r in Run(tmp_path / "run").records()]
    assert {"build", "check", "warm-up"} <= set(watching.phases)
    assert "noise on stderr" in (tmp_path / "run" / "worker.log").read_text()


def test_the_manifest_tells_the_conditions(plan_of: MakePlan, tmp_path: Path) -> None:
    outcome = run_bench(plan_of("steady", "steady"), tmp_path / "run", device="cpu", command="wattline bench ...")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["plan"]["command"] == "wattline bench ..."
    assert manifest["environment"]
    assert manifest["environment_id"]
    assert manifest["timer"]["name"] == "perf_counter_ns"
    assert manifest["energy"]["available"] is False
    assert manifest["energy"]["reason"]["message"]
    assert manifest["device"]["measured"]["memory_bandwidth"] > 1e9
    assert manifest["totals"]["by_status"] == {"ok": 2}
    assert outcome.exit_code == 0
    record = next(iter(Run(tmp_path / "run").records()))
    assert record.measurement is not None
    assert 0 < record.measurement.timed_s < record.wall_s
    assert record.measurement.stats.median_s == pytest.approx(1e-3, rel=1.0)
    assert record.started_at
    assert record.seed


def test_the_same_seed_gives_the_same_inputs_whatever_the_order(plan_of: MakePlan, tmp_path: Path) -> None:
    first, second = plan_of("steady", "raises"), plan_of("steady", "raises")
    second = Plan(**{**{f: getattr(second, f) for f in second.__dataclass_fields__}, "cases": first.cases[::-1]})
    run_bench(first, tmp_path / "a", device="cpu")
    run_bench(second, tmp_path / "b", device="cpu")
    seeds_a = {r.case: r.seed for r in Run(tmp_path / "a").records()}
    seeds_b = {r.case: r.seed for r in Run(tmp_path / "b").records()}
    assert seeds_a == seeds_b
    assert len(set(seeds_a.values())) == 2


def test_a_time_that_no_core_can_reach_fails_loudly(plan_of: MakePlan, tmp_path: Path) -> None:
    outcome = run_bench(plan_of("impossible"), tmp_path / "run", device="cpu")
    record = next(iter(Run(tmp_path / "run").records()))
    assert record.status == "failed"
    assert record.reason is not None
    assert record.reason.code == "above_bound"
    assert not record.valid
    assert outcome.exit_code == 1


def test_a_case_that_outdoes_the_probe_raises_the_ceiling(plan_of: MakePlan, tmp_path: Path) -> None:
    params = {"batch": 1, "m": 256, "n": 256, "k": 256, "dtype": "fp32", "layout": "nn"}
    dense = Case("gemm.dense", "torch", {**params, "out_dtype": "same", "acc": "default"}, regime="hot")
    path = tmp_path / "run"
    run_bench(plan_of(dense, "steady"), path, device="cpu")
    # A probe on a busy machine: a tenth of what the case then reached. Resuming measures the rest and settles it.
    manifest = json.loads((path / "run.json").read_text())
    manifest["device"]["measured"]["flops"]["fp32"] = 1e6
    (path / "run.json").write_text(json.dumps(manifest))
    lines = (path / "records.jsonl").read_text().splitlines(keepends=True)
    (path / "records.jsonl").write_text(lines[0])
    resume_bench(path)
    run = Run(path)
    first = next(iter(run.records()))
    assert first.valid
    assert run.device.measured is not None
    assert run.device.measured.flops["fp32"] == pytest.approx(2 * 256**3 / first.time_s)
    assert first.efficiency == pytest.approx(1.0)
    assert "raised by the run itself" in run.manifest["probe"]["notes"]["flops.fp32"]


def test_the_budget_ends_the_run_in_time_and_resume_takes_the_rest(plan_of: MakePlan, tmp_path: Path) -> None:
    settings = MeasureSettings(
        stopping="time_limit", min_time_s=0.0, time_limit_s=0.2, warmup_limit_s=0.02, min_samples=3, max_samples=100_000
    )
    # How long a start takes here and now is measured, so that a busy machine has time for some cases too.
    begin = time.monotonic()
    run_bench(plan_of("steady", settings=settings), tmp_path / "first", device="cpu")
    budget_s = 4.0 + 1.5 * (time.monotonic() - begin)
    plan = plan_of(*["steady"] * 400, budget_s=budget_s, settings=settings)
    begin = time.monotonic()
    outcome = run_bench(plan, tmp_path / "run", device="cpu")
    assert outcome.state == "out_of_budget"
    assert 0 < outcome.done < 400
    assert time.monotonic() - begin < budget_s + 15.0  # a bound against running on, not a measure of speed
    missing = Run(tmp_path / "run").missing()
    assert [p.case.params["i"] for p in missing] == list(range(outcome.done + 1, 401))


def test_a_second_run_in_one_folder_is_refused(plan_of: MakePlan, tmp_path: Path) -> None:
    run_bench(plan_of("steady"), tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="already"):
        run_bench(plan_of("steady"), tmp_path / "run", device="cpu")


def test_resuming_a_complete_run_measures_nothing(plan_of: MakePlan, tmp_path: Path) -> None:
    run_bench(plan_of("steady"), tmp_path / "run", device="cpu")
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    outcome = resume_bench(tmp_path / "run")
    assert outcome.state == "complete"
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_a_run_of_another_device_is_not_resumed(plan_of: MakePlan, tmp_path: Path) -> None:
    run_bench(plan_of("steady", "steady"), tmp_path / "run", device="cpu")
    path = tmp_path / "run"
    lines = (path / "records.jsonl").read_text().splitlines(keepends=True)
    (path / "records.jsonl").write_text(lines[0])
    manifest = json.loads((path / "run.json").read_text())
    manifest["device"]["id"] = "another"
    (path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="another"):
        resume_bench(path)


# Kills, hangs and full disks, with a parent process of its own


RUN = """
import pickle, sys
from wattline.errors import WattlineError
from wattline.suites.runner import Observer, run_bench, resume_bench

class Telling(Observer):
    def note(self, message):
        print("note", message, flush=True)
    def case_ended(self, record):
        print("ended", record.case.params["i"], record.status, flush=True)

mode, plan, out = sys.argv[1:4]
try:
    if mode == "run":
        outcome = run_bench(pickle.load(open(plan, "rb")), out, device="cpu", observer=Telling())
    else:
        outcome = resume_bench(out, observer=Telling())
except WattlineError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(error.exit_code)
print(outcome.state, flush=True)
sys.exit(outcome.exit_code)
"""


class Bench:
    """A bench in a process of its own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        import pickle

        self.out = folder / "run"
        self._plan = folder / "plan.pickle"
        with open(self._plan, "wb") as handle:
            pickle.dump(plan, handle)

    def start(self, mode: str = "run", **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, mode, str(self._plan), str(self.out)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,  # type: ignore[call-overload]
        )  # fmt: skip


def wait_for(path: Path, seconds: float = 60.0) -> str:
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


SLOW = MeasureSettings(
    stopping="time_limit", time_limit_s=1.0, warmup_limit_s=0.02, min_samples=3, deadline_s=20.0, max_samples=10_000
)


def test_kill_9_of_the_parent_then_resume_gives_exactly_the_missing_cases(
    plan_of: MakePlan, tmp_path: Path, plugin: Path
) -> None:
    bench = Bench(plan_of(*["noting"] * 4, settings=SLOW), tmp_path)
    parent = bench.start()
    worker = int(wait_for(plugin / "began-3"))
    parent.kill()
    parent.wait()
    begin = time.monotonic()
    while alive(worker) and time.monotonic() - begin < 10:
        time.sleep(0.05)
    assert not alive(worker), "the worker outlived its parent"
    done = [r.case.params["i"] for r in Run(bench.out).records()]
    assert done == [1, 2]
    assert Run(bench.out).state == "running"
    resumed = bench.start("resume")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert [line for line in output.splitlines() if line.startswith("ended")] == ["ended 3 ok", "ended 4 ok"]
    assert [r.case.params["i"] for r in Run(bench.out).records()] == [1, 2, 3, 4]
    assert Run(bench.out).state == "complete"


def test_kill_9_of_the_worker_repeats_the_case_in_a_new_one(
    plan_of: MakePlan, tmp_path: Path, plugin: Path
) -> None:
    bench = Bench(plan_of(*["noting"] * 3, settings=SLOW), tmp_path)
    parent = bench.start()
    os.kill(int(wait_for(plugin / "began-2")), signal.SIGKILL)
    output, _ = parent.communicate(timeout=120)
    assert parent.returncode == 0, output
    assert "trying the case again" in output
    assert [(r.case.params["i"], r.status) for r in Run(bench.out).records()] == [(1, "ok"), (2, "ok"), (3, "ok")]


def test_a_torn_last_line_is_measured_again(plan_of: MakePlan, tmp_path: Path) -> None:
    bench = Bench(plan_of(*["noting"] * 3), tmp_path)
    assert bench.start().wait(timeout=120) == 0
    records = bench.out / "records.jsonl"
    text = records.read_bytes()
    records.write_bytes(text[:-40])
    resumed = bench.start("resume")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert "torn" in output
    assert "ended 3 ok" in output
    assert [r.case.params["i"] for r in Run(bench.out).records()] == [1, 2, 3]
    assert (bench.out / "records.jsonl.torn").exists()


def test_ctrl_c_lets_the_case_in_flight_end_and_can_be_resumed(
    plan_of: MakePlan, tmp_path: Path, plugin: Path
) -> None:
    bench = Bench(plan_of(*["noting"] * 4, settings=SLOW), tmp_path)
    parent = bench.start()
    wait_for(plugin / "began-2")
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 130, output
    assert "once more to stop at once" in output
    assert [r.case.params["i"] for r in Run(bench.out).records()] == [1, 2]
    assert Run(bench.out).state == "interrupted"
    resumed = bench.start("resume")
    assert resumed.wait(timeout=120) == 0
    assert [r.case.params["i"] for r in Run(bench.out).records()] == [1, 2, 3, 4]


def test_ctrl_c_twice_stops_at_once(plan_of: MakePlan, tmp_path: Path, plugin: Path) -> None:
    endless = MeasureSettings(stopping="time_limit", time_limit_s=600.0, deadline_s=600.0, max_samples=10**9)
    bench = Bench(plan_of("noting", settings=endless), tmp_path)
    parent = bench.start()
    worker = int(wait_for(plugin / "began-1"))
    time.sleep(0.3)
    parent.send_signal(signal.SIGINT)
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=30)
    assert parent.returncode == 130, output
    assert not alive(worker)
    assert list(Run(bench.out).records()) == []
    assert Run(bench.out).state == "interrupted"


def test_two_runs_on_one_folder_the_second_is_refused(plan_of: MakePlan, tmp_path: Path, plugin: Path) -> None:
    bench = Bench(plan_of(*["noting"] * 2, settings=SLOW), tmp_path)
    parent = bench.start()
    wait_for(plugin / "began-1")
    with pytest.raises(RunLockedError, match=str(parent.pid)):
        resume_bench(bench.out)
    assert parent.wait(timeout=120) == 0
    assert len(list(Run(bench.out).records())) == 2


def test_a_full_disk_keeps_what_was_measured_and_resume_goes_on(plan_of: MakePlan, tmp_path: Path) -> None:
    bench = Bench(plan_of(*["noting"] * 12), tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    # The limit is inherited by the worker too, whose log stays below it.
    parent = bench.start(preexec_fn=limit)
    output, _ = parent.communicate(timeout=120)
    assert parent.returncode == 2, output
    assert "StorageFullError" in output
    assert "--resume" in output
    kept = [r.case.params["i"] for r in Run(bench.out).records()]
    assert kept == list(range(1, len(kept) + 1))
    assert 0 < len(kept) < 12
    resumed = bench.start("resume")
    assert resumed.wait(timeout=120) == 0
    assert [r.case.params["i"] for r in Run(bench.out).records()] == list(range(1, 13))


def test_a_worker_that_cannot_start_says_why(
    plan_of: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no torch for you')")
    monkeypatch.setenv("PYTHONPATH", f"{broken}{os.pathsep}{os.environ['PYTHONPATH']}")
    bench = Bench(plan_of("steady"), tmp_path)
    parent = bench.start()
    output, _ = parent.communicate(timeout=120)
    assert parent.returncode == 2, output
    assert "DeviceError" in output
    assert "no torch for you" in output


def test_a_signal_says_nothing_from_within_its_handler() -> None:
    told: list[str] = []
    stop = StopRequests(told.append)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert told == []  # a handler may interrupt a write to the very stream that it would write to
        assert stop.soon
        assert not stop.now()
        assert len(told) == 1
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.now()
        assert len(told) == 1
