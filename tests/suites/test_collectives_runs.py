"""Real ranks: started by torchrun, by the command line, and as Slurm starts them; killed, stuck and missing ones."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from wattline import nccl_tests
from wattline.case import Case
from wattline.errors import UsageError
from wattline.record import Record
from wattline.run import PlannedCase, Run
from wattline.suites.collectives.launch import Launch
from wattline.suites.collectives.world import Place
from wattline.suites.plan import Plan
from wattline.suites.runner import resume_bench, run_bench
from wattline.suites.settings import MeasureSettings
from wattline.workmodels.collectives import busbw_factor

LAME = '''
"""Operations of several ranks that go wrong on one of them."""

import os
import signal
import time
from pathlib import Path

from wattline.params import Int, Params
from wattline.suites.collectives.kernel import WORLD, GroupKernel, GroupWorkload
from wattline.suites.registry import workload
from wattline.work import Work

MARKS = Path(os.environ["LAME_MARKS"])


class Base(GroupWorkload):
    """Adds up, as it should."""

    params = Params(i=Int(1), **WORLD)

    def work(self, p):
        return Work(link_bytes={"fabric": 32.0})

    def footprint(self, p):
        return 64.0

    def build(self, p, ctx):
        import torch
        import torch.distributed as dist

        comm, x = ctx.comm, torch.zeros(8)
        if comm.rank == 1:
            (MARKS / f"pid-{self.op}").write_text(str(os.getpid()))

        def call():
            self.act(comm.rank)
            dist.all_reduce(x, group=comm.group)

        def verify():
            wrong = float((x != comm.size).sum()) + self.wrong(comm.rank)
            return wrong / 8, 0.0, f"{wrong:g} wrong"

        return GroupKernel(
            call, {}, refresh=lambda: x.fill_(1.0), verify=verify, token=self.token(comm.rank),
            per_rank=lambda: {"pids": os.getpid()},
        )

    def act(self, rank):
        pass

    def wrong(self, rank):
        return 0

    def token(self, rank):
        return "8 x fp32"


@workload("lame.fine")
class Fine(Base):
    """Goes well."""


@workload("lame.raises")
class Raises(Base):
    """Cannot be built on rank 1."""

    def build(self, p, ctx):
        if ctx.comm.rank == 1:
            raise RuntimeError("no such luck")
        return super().build(p, ctx)


@workload("lame.sizes")
class Sizes(Base):
    """Would send another size on rank 1."""

    def token(self, rank):
        return f"{8 + rank} x fp32"


@workload("lame.wrong")
class Wrong(Base):
    """Has a wrong result on rank 1."""

    def wrong(self, rank):
        return rank


@workload("lame.stuck")
class Stuck(Base):
    """Never comes to the sum on rank 1."""

    def act(self, rank):
        if rank == 1:
            time.sleep(3600)


@workload("lame.dies")
class Dies(Base):
    """Rank 1 is killed, the first time only."""

    def act(self, rank):
        mark = MARKS / "died"
        if rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@workload("lame.waits")
class Waits(Base):
    """Waits in the sum until a test kills rank 1."""

    def act(self, rank):
        if rank == 1 and not (MARKS / "go").exists():
            time.sleep(3600)
'''
TOKEN = "WATTLINE_TEST_TOKEN"
QUICK = MeasureSettings(
    min_time_s=0.01, time_limit_s=0.03, warmup_limit_s=0.01, min_samples=3, deadline_s=6.0, max_call_s=30.0
)


@pytest.fixture(scope="module")
def lame_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plug-in as an installed distribution."""
    folder = tmp_path_factory.mktemp("lame")
    (folder / "lame_suite.py").write_text(textwrap.dedent(LAME))
    info = folder / "lame_suite-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lame-suite\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wattline.suites]\nlame = lame_suite\n")
    return folder


@pytest.fixture
def lame(lame_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plug-in active for started processes; gives the folder of its marks."""
    marks = tmp_path / "marks"
    marks.mkdir()
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{lame_folder}{os.pathsep}{old}" if old else str(lame_folder))
    monkeypatch.setenv("LAME_MARKS", str(marks))
    return marks


@pytest.fixture(autouse=True)
def no_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No rank outlives its test, whatever the test does: what it starts is known by a variable."""
    monkeypatch.setenv(TOKEN, str(tmp_path))
    yield
    deadline = time.monotonic() + 10
    while left := _started(str(tmp_path)):
        if time.monotonic() > deadline:
            for process in left:
                process.kill()
            pytest.fail(f"orphans: {left}")
        time.sleep(0.1)


def _started(token: str) -> list[psutil.Process]:
    """Processes that this test started, however distantly, and that still run."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        mine = (process.info["environ"] or {}).get(TOKEN) == token and process.pid != os.getpid()
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def plan(*ops: str, **params: Any) -> Plan:
    whole = {"i": 1, "world_size": 2, "groups": 1, "backend": "gloo"} | params
    cases = [PlannedCase(Case(op, "torch", whole, "hot")) for op in ops]
    return Plan("test", tuple(cases), (), QUICK, None, 0, {}, 1.0, 1.0, ranks=2)


def launch(**changes: Any) -> Launch:
    return Launch(**({"ranks": 2, "place": Place(), "device": "cpu", "timeout_s": 60.0} | changes))


def by_op(folder: Path) -> dict[str, Record]:
    return {record.case.op: record for record in Run(folder).records()}


def test_what_goes_wrong_on_one_rank_costs_its_case_and_names_the_rank(lame: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ops = ("lame.raises", "lame.sizes", "lame.wrong", "lame.dies", "lame.fine", "lame.stuck")  # a hang is a new group
    outcome = run_bench(plan(*ops), out, device="cpu", launch=launch())
    found = by_op(out)
    assert outcome.exit_code == 1
    assert {op: found[op].status for op in ops} == {
        "lame.raises": "failed", "lame.sizes": "failed", "lame.wrong": "failed", "lame.dies": "ok",
        "lame.stuck": "timeout", "lame.fine": "ok",
    }  # fmt: skip
    reasons = {op: found[op].reason.message for op in ops if found[op].reason}  # type: ignore[union-attr]
    assert reasons["lame.raises"].startswith("rank 1 (process ")
    assert "while building: RuntimeError: no such luck" in reasons["lame.raises"]
    assert reasons["lame.sizes"] == (
        "the ranks have built different sizes: rank 0 has 8 x fp32, rank 1 has 9 x fp32"
    )
    assert "rank 1 (process " in reasons["lame.wrong"]
    assert "1 wrong" in reasons["lame.wrong"]
    assert "rank 0 of 2" in reasons["lame.stuck"]
    assert re.search(r"\(rank 1 \(process \d+ on .+\) hangs while making the first call", reasons["lame.stuck"])
    assert "[rank 1]" in (out / "worker.log").read_text()
    fine = found["lame.fine"].measurement
    assert fine is not None
    assert fine.check is not None
    assert fine.check.passed
    assert len(set(fine.facts["pids"])) == 2
    series = [json.loads(line) for line in (out / "ranks" / "rank-0001.jsonl").read_text().splitlines()]
    mine = next(line for line in series if line["op"] == "lame.fine")
    assert mine["rank"] == 1
    assert sum(mine["samples_ns"]) == pytest.approx(sum(mine["iterations_ns"]))
    assert len(mine["iterations_ns"]) == mine["calls_per_sample"] * len(mine["samples_ns"])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "wattline.cli", "bench", *arguments]


BENCH = (
    "collectives.all_reduce", "--set", "bytes=64,4096", "--regime", "hot", "--device", "cpu", "--no-fit", "--no-report",
    "--measure", "min_time_s=0.01", "--measure", "time_limit_s=0.03", "--measure", "warmup_limit_s=0.01",
)  # fmt: skip


def test_the_command_starts_torchrun_and_torchrun_starts_the_command(tmp_path: Path) -> None:
    alone, joined = tmp_path / "alone", tmp_path / "joined"
    sizes = ("-b", "64", "-e", "100K", "-f", "1024", "-n", "3", "-w", "1", "--device", "cpu", "--no-fit", "--no-report")
    both = [
        subprocess.Popen(
            command("collectives", *sizes, "--ranks", "2", "--out", str(alone)), stderr=subprocess.PIPE, text=True
        ),
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "-m", "wattline.cli", "bench", *BENCH, "--out", str(joined),
            ],
            stderr=subprocess.PIPE, text=True,
        ),
    ]  # fmt: skip
    for process, folder in zip(both, (alone, joined), strict=True):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        run = Run(folder)
        assert run.manifest["plan"]["ranks"] == 2
        assert [rank["rank"] for rank in run.manifest["ranks"]] == [0, 1]
        assert len(list((folder / "ranks").iterdir())) == 2
        for record in run.records():
            assert record.status == "ok", record.reason
            assert record.measurement is not None
            assert record.measurement.check is not None
            assert record.measurement.check.passed
            facts, p = record.measurement.facts, record.case.params
            share = busbw_factor(record.case.op.removeprefix("collectives."), 2)
            assert facts["actual_bytes"] == p["bytes"]
            assert facts["algbw_bytes_per_s"] == pytest.approx(p["bytes"] / record.time_s)  # type: ignore[operator]
            assert facts["busbw_bytes_per_s"] == pytest.approx(share * facts["algbw_bytes_per_s"])
            assert facts["clock_error_s"][0] == 0.0
            assert 0 < facts["clock_error_s"][1] < 1
            assert len(facts["rank_median_s"]) == 2
    assert len(list(Run(joined).records())) == 2
    found = list(Run(alone).records())
    assert len({record.case.op for record in found}) == 10  # all but the barrier
    assert {record.case.params["bytes"] for record in found} == {64, 65536}
    assert {record.measurement.stop for record in found} == {"iterations"}  # type: ignore[union-attr]
    read = nccl_tests.parse(exported(alone))
    assert {table.name: [line.size for line in table.lines] for table in read} == {
        name: [64, 65536] for name in nccl_tests.PROGRAMS
    }
    assert {table.ranks for table in read} == {2}


def exported(folder: Path) -> str:
    """A run as nccl-tests prints it."""
    done = subprocess.run(
        [sys.executable, "-m", "wattline.cli", "export", str(folder), "-f", "nccl-tests"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "2 of 20 records have no valid figure, or no place in this format" in done.stderr  # uneven parts
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slurm(rank: int, port: int, *arguments: str, tasks: int = 2, **more: str) -> subprocess.Popen[str]:
    """A rank as srun starts it."""
    env = os.environ | {
        "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(tasks),
        "SLURM_NODEID": "0", "SLURM_LOCALID": str(rank), "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more,
    }  # fmt: skip
    return subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def test_a_rank_that_is_killed_ends_the_run_on_every_rank_and_it_can_be_resumed(lame: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    wanted = ("lame.fine", "lame.waits", "--set", "i=1", "--regime", "hot", "--device", "cpu", "--no-fit",
              "--no-report", "--measure", "min_time_s=0.01", "--measure", "time_limit_s=0.03", "--measure",
              "warmup_limit_s=0.01", "--measure", "deadline_s=20", "--out", str(out))  # fmt: skip
    first, second = (slurm(rank, port, *wanted) for rank in (0, 1))
    mark = lame / "pid-lame.waits"
    deadline = time.monotonic() + 90
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert int(mark.read_text()) == second.pid  # a rank beside rank 0 is the command itself
    killed = time.monotonic()
    os.kill(second.pid, signal.SIGKILL)
    _, errors = first.communicate(timeout=30)
    assert time.monotonic() - killed < 15
    second.communicate(timeout=10)
    assert first.returncode == 2, errors
    assert "the group of ranks is broken" in errors
    assert "rank 1 (process " in errors
    assert "died or hangs" in errors
    assert "--resume" in errors
    done = {record.case.op for record in Run(out).records()}
    assert "lame.waits" not in done
    assert "rank 0 of 2" in (out / "worker.log").read_text()

    (lame / "go").touch()
    again = [slurm(rank, free, "lame.fine", "lame.waits", "--resume", "--out", str(out), "--no-fit", "--no-report",
                   "--device", "cpu") for free in [free_port()] for rank in (0, 1)]  # fmt: skip
    for process in again:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
    assert {record.case.op: record.status for record in Run(out).records()} == {"lame.fine": "ok", "lame.waits": "ok"}


def test_who_cannot_join_says_why_within_the_timeout(tmp_path: Path) -> None:
    began = time.monotonic()
    wanted = (*BENCH, "--timeout", "3s", "--out")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        started = [
            slurm(0, free_port(), *wanted, str(tmp_path / "a")),
            slurm(1, free_port(), *wanted, str(tmp_path / "a")),  # at another port
            slurm(0, taken, *wanted, str(tmp_path / "b")),
            slurm(0, free_port(), *wanted, str(tmp_path / "c"), tasks=1, GLOO_SOCKET_IFNAME="nosuch0"),
        ]
        said = [process.communicate(timeout=90)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2, 2, 2], said
    alone, other, port, interface = said
    assert "only 1 of 2 ranks joined within 3" in alone
    assert "missing: rank 1" in alone
    assert "[rank 1]" in other
    assert "cannot reach the meeting point" in other
    assert f"the port {taken} of the meeting point is taken" in port
    assert "MASTER_PORT" in port
    assert "no network interface nosuch0" in interface
    assert time.monotonic() - began < 60


def test_a_run_keeps_its_number_of_ranks(lame: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="planned for 2 ranks, and is given 1 rank"):
        run_bench(plan("lame.fine"), out, device="cpu", launch=launch(ranks=1))
    with pytest.raises(UsageError, match="planned for 2 ranks, and is given one device"):
        resume_bench(out)
    assert not list(Run(out).records())


@pytest.fixture
def refused(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """What the command says when it refuses."""

    def run(*arguments: str, **env: str) -> str:
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, timeout=60, check=False, env=os.environ | env
        )
        assert done.returncode == 2
        return done.stderr

    return run


def test_ranks_are_for_what_several_do(refused: Callable[..., str]) -> None:
    assert "runs on one device, and this run has 2 ranks" in refused("gemm.dense", "--ranks", "2")
    assert "cannot be measured in one run" in refused("collectives", "gemm.dense", "--ranks", "2")
    batch = {"SLURM_JOB_ID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    assert "batch script" in refused("collectives", **batch)
    inside = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "1234"}
    assert "inside torchrun, which has started 4" in refused("collectives", "--ranks", "2", **inside)
    assert "-b 4M is larger than -e 1M" in refused("collectives", "--ranks", "2", "-b", "4M", "-e", "1M")
    assert "-b, -e and -f say the sizes" in refused("collectives", "--ranks", "2", "-b", "4", "--set", "bytes=8")
