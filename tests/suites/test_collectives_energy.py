"""Joules of several ranks: by hand, and on real ranks beside simulated sensors, whose truth is known.

A start-up file on PYTHONPATH, which exists in these tests only, makes ranks look at the simulated sensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.collectors.energy import EnergySensor, EnergyWindow
from wattline.errors import SensorError
from wattline.record import Energy, Reason, Record
from wattline.run import PlannedCase, Run
from wattline.suites.collectives import joules as joules_of_ranks
from wattline.suites.collectives.joules import GroupLoad, GroupMeter, Held, Joules, lacking, meters, pace_of, together
from wattline.suites.collectives.kernel import GroupKernel
from wattline.suites.collectives.launch import Launch
from wattline.suites.collectives.lockstep import Taken, host_run
from wattline.suites.collectives.overlap import energies
from wattline.suites.collectives.world import Place
from wattline.suites.plan import Plan
from wattline.suites.registry import get
from wattline.suites.runner import run_bench
from wattline.suites.settings import MeasureSettings

SETTINGS = MeasureSettings(
    iterations=20, warmup_iterations=2, time_limit_s=0.1, min_time_s=0.05, deadline_s=40.0, energy_window_s=1.2
)
RENEW_S = 0.05
"""Of simulated counters: a thread that must come up for a core every millisecond stands still on a busy machine."""
PATIENT = '''
import wattline.suites.collectives.joules as joules

joules.MOST_GAPS = 0.9  # on a machine with more to do than cores, ranks wait for each other
'''
ONE_HOST = PATIENT + '''
import wattline.collectors.energy as energy

_sensor = energy.find_energy_sensor
energy.find_energy_sensor = lambda kind, *a, **k: _sensor("cpu", {root!r})
'''
EACH_A_HOST = PATIENT + '''
import os
import wattline.collectors.energy as energy
import wattline.suites.collectives.join as join

_sensor = energy.find_energy_sensor
_roots = {roots!r}
energy.find_energy_sensor = lambda kind, *a, **k: _sensor("cpu", _roots[int(os.environ.get("RANK", 0))])
join._boot_id = lambda: "boot " + os.environ["RANK"]
'''
EACH_A_GPU = PATIENT + '''
import os
import wattline.collectors.energy as energy

_sensor = energy.find_energy_sensor
energy.find_energy_sensor = lambda kind, *a, **k: _sensor("cuda", index=int(os.environ.get("RANK", 0)))
'''


def case(op: str, impl: str = "torch", **params: Any) -> Case:
    whole = get(f"collectives.{op}").workload.params.parse({"world_size": 2, "backend": "gloo", **params})
    return Case(f"collectives.{op}", impl, whole, "hot")


SUM = case("all_reduce", bytes=65_536)
OVERLAP = case("overlap", collective="all_reduce", bytes=65_536, m=96, n=96, k=96)
RACE = case("stragglers", bytes=4096, work=64)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Record]]:
    """Runs cases on two ranks with a start-up file; gives the records, and the run's folder beside them."""

    def run(hook: str, *cases: Case, settings: MeasureSettings = SETTINGS, **env: str) -> dict[str, Record]:
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "sitecustomize.py").write_text(hook)
        parts = [str(tmp_path / "hook"), env.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(part for part in parts if part))
        planned = tuple(PlannedCase(each) for each in cases)
        plan = Plan("test", planned, (), settings, None, 0, {}, 1.0, 1.0, ranks=2)
        run_bench(plan, tmp_path / "run", device="cpu", launch=Launch(2, Place(), "cpu", 60.0))
        found = {record.case.op.removeprefix("collectives."): record for record in Run(tmp_path / "run").records()}
        assert {record.status for record in found.values()} == {"ok"}, [record.reason for record in found.values()]
        return found

    return run


def energy_of(record: Record) -> Energy:
    assert record.measurement is not None
    assert record.measurement.energy is not None, record.measurement.flags
    return record.measurement.energy


def facts_of(record: Record) -> dict[str, Any]:
    assert record.measurement is not None
    return dict(record.measurement.facts)


# By hand


def held(device: str, scope: str = "package", code: str = "", host: str = "a") -> Held:
    return Held(device, host, scope, Reason(code, f"no {code}") if code else None)


def test_what_ranks_share_is_read_by_the_first_of_them_that_takes_part() -> None:
    assert meters([held("a"), held("a"), held("b"), held("b")]) == (0, 2)
    assert meters([None, held("a"), held("a"), held("b")]) == (1, 3)
    assert meters([held(f"gpu {i}", "gpu") for i in range(4)]) == (0, 1, 2, 3)


def test_joules_of_some_devices_are_not_those_of_all() -> None:
    named = "rank {}".format
    assert lacking([held("a"), held("b")], named) is None
    assert lacking([held("a", code="rapl"), held("a", code="rapl")], named) == Reason("rapl", "no rapl")
    assert lacking([held("a"), held("b", code="rapl")], named) == Reason("rapl", "rank 1: no rapl")
    assert lacking([held("a"), None], named) is None
    cards = lacking([held("die 0", "card"), held("die 1", "card")], named)
    assert cards is not None
    assert cards.code == "shared_cards"
    assert lacking([held("die 0", "card"), held("die 1", "card", host="b")], named) is None


def joules(watts: float, gain: float = 0.05, *, spread: float = 0.0, **budget: float) -> Energy:
    """Of a call of a second."""
    low, high = watts * (1 - spread) / (1 + gain), watts * (1 + spread) / (1 - gain)
    return Energy(watts, watts, low, high, "rapl", "package", budget={"gain": gain, **budget}, flags=("uncalibrated",))


def test_watts_and_joules_of_devices_are_added_and_gaps_widen_upwards() -> None:
    found = together([joules(100.0, trial=0.02), joules(300.0, trial=0.06)], gaps=0.02)
    assert (found.power_w, found.energy_j) == (400.0, 400.0)
    assert found.energy_lo_j == pytest.approx(400 / 1.05)
    assert found.energy_hi_j == pytest.approx(400 / 0.95 / 0.98)
    assert found.budget == pytest.approx({"gain": 0.05, "trial": 0.05, "gaps": 0.02, "pace": 0.0})
    assert (found.source, found.scope, found.flags) == ("rapl", "package", ("uncalibrated",))


def test_what_overlap_saves_by_hand() -> None:
    # 60 J and 40 J alone, 90 J together: a tenth less; the gain is in each interval, and not in that of the ratio.
    facts = energies(joules(60.0), joules(40.0), joules(90.0))
    assert facts["energy_saving"] == pytest.approx(0.1)
    assert facts["energy_saving_range"] == pytest.approx([0.1, 0.1])
    assert facts["compute_energy_range_j"] == pytest.approx([60 / 1.05, 60 / 0.95])
    wide = energies(joules(60.0, spread=0.1), joules(40.0, spread=0.1), joules(90.0, spread=0.1))
    assert wide["energy_saving_range"] == pytest.approx([1 - 99 / 90, 1 - 81 / 110])
    assert energies(joules(60.0), joules(40.0), joules(110.0))["energy_saving"] == pytest.approx(-0.1)
    # Loads that went unevenly, by a tenth, are compared no better than that.
    uneven = energies(joules(60.0, pace=0.1), joules(40.0, pace=0.1), joules(90.0, pace=0.1))
    assert uneven["energy_saving_range"] == pytest.approx([1 - 99 / 90, 1 - 81 / 110])
    assert uneven["compute_energy_range_j"] == pytest.approx([60 / 1.05, 60 / 0.95])


def test_the_pace_of_a_load_by_hand() -> None:
    assert pace_of([2.0, 2.0, 2.0]) == 0.0
    # 1, 2, 3: deviation 1, of a mean of three 1/sqrt(3), Student's 4.303 for two degrees of freedom: more than is told.
    assert pace_of([1.0, 2.0, 3.0]) == 0.9
    assert pace_of([9.0, 10.0, 11.0]) == pytest.approx(4.303 / 3**0.5 / 10)
    assert pace_of([1.0]) == 0.9


class Alone:
    """A world of one rank, as far as the meter asks."""

    rank = 0

    def __init__(self) -> None:
        self.members = [{"boot": "b", "host": "h"}]

    def named(self, rank: int) -> str:
        return f"rank {rank}"

    def all_say(self, value: Any, doing: str) -> list[Any]:
        return [value]

    def hand_in(self, value: Any, doing: str) -> list[Any]:
        return [value]

    def tell(self, value: Any) -> Any:
        return value


class Sensor(EnergySensor):
    """Counts what it is asked, and gives a joule a call; noted in the order in which it came."""

    name, scope, source = "sim", "package", "sim"

    def __init__(self, notes: list[str], failure: str = "") -> None:
        self.notes, self.failure = notes, failure

    def window(self, requested_s: float | None = None) -> EnergyWindow:
        if requested_s == 0:
            raise SensorError("too short")
        return EnergyWindow(0.02, 0.1, 0.01)

    def _begin(self) -> None:
        self.notes.append("start")
        if self.failure == "start":
            raise SensorError("not to be started")

    def _end(self, calls: int, device_time_s: float) -> Energy:
        self.notes.append(f"stop after {calls}")
        if self.failure == "stop":
            raise SensorError("lost its thread")
        return joules(1.0)


class Steps:
    """Takes batches of calls that last 1.01 ms each, with a pause before each batch; it is its own clock."""

    def __init__(self, notes: list[str], pause_s: float) -> None:
        self.notes, self.pause_s, self.now_s = notes, pause_s, 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def take(self, kernels: Any, run: Any, calls: list[Any], next_count: Any) -> Taken:
        taken = Taken()
        while count := next_count(taken):
            run([calls[i % len(calls)] for i in range(count)])
            self.now_s += self.pause_s + count * 1.01e-3
            taken.count = count
            taken.slowest_ns.append(count * 1_010_000)
        self.notes.append("load")
        return taken


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Joules, list[str]]]:
    """A load of calls of a millisecond under a sensor of 0.02, 0.1 and 0.01 s; and what happened, in order."""

    def measure(
        *, failure: str = "", requested_s: float | None = None, pause_s: float = 0.0, refresh: Any = None
    ) -> tuple[Joules, list[str]]:
        notes: list[str] = []
        steps = Steps(notes, pause_s)
        monkeypatch.setattr(joules_of_ranks, "time", steps)
        sensor = Sensor(notes, failure)
        meter = GroupMeter(Alone(), sensor, requested_s, progress=lambda *_: None)  # type: ignore[arg-type]
        kernel = GroupKernel(lambda: None, {}, refresh=refresh)
        load = GroupLoad([kernel], host_run, [kernel.call], call_s=1e-3)
        return meter.measure(steps, load), notes  # type: ignore[arg-type]

    return measure


def test_the_sensor_is_read_within_the_load(metered: Callable[..., tuple[Joules, list[str]]]) -> None:
    found, notes = metered()
    assert notes == ["load", "start", "load", "stop after 100", "load"]  # lead-in, measured part, lead-out
    assert found.energy is not None
    assert found.energy.power_w == 1.0
    assert found.facts == {"energy_ranks": [0], "energy_each_j": [1.0]}


def test_inputs_that_calls_change_are_put_back_within_the_load_and_are_no_calls(
    metered: Callable[..., tuple[Joules, list[str]]],
) -> None:
    fresh: list[int] = []
    _, notes = metered(refresh=lambda: fresh.append(1))
    # 0.1 s have room for three whole cycles of 32 calls and one refresh, 99.99 ms: a second batch follows. Lead-in and
    # lead-out are a cycle each.
    assert notes[3] == "stop after 192"
    assert len(fresh) == 2 * 3 + 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"requested_s": 0.0}, "rank 0: too short"),
        ({"failure": "start"}, "rank 0: not to be started"),
        ({"failure": "stop"}, "rank 0: lost its thread"),
        ({"pause_s": 0.05}, "of the load the ranks waited for each other"),
    ],
)  # fmt: skip
def test_a_refusal_is_a_flag_and_no_joules(
    metered: Callable[..., tuple[Joules, list[str]]], changed: dict[str, Any], words: str
) -> None:
    found, notes = metered(**changed)
    assert found.energy is None
    assert [flag.code for flag in found.flags] == ["energy_refused"]
    assert words in found.flags[0].message
    assert notes.count("load") == (0 if "requested_s" in changed else 3)


# On real ranks


def test_ranks_of_one_host_count_its_package_once(
    simulated_rapl: Callable[..., Any], bench: Callable[..., dict[str, Record]], tmp_path: Path
) -> None:
    rapl = simulated_rapl(idle_w=150.0, renew_s=RENEW_S)
    records = bench(ONE_HOST.format(root=rapl.root), SUM, OVERLAP, RACE)
    for name in ("all_reduce", "overlap"):
        energy = energy_of(records[name])
        assert energy.power_w == pytest.approx(150, rel=0.03)  # two ranks that both count it would find 300
        assert energy.energy_lo_j < energy.energy_j < energy.energy_hi_j
        assert energy.scope == "package"
        assert energy.source.startswith("rapl")
        assert {"gain", "quantisation", "gaps"} <= set(energy.budget)
        facts = facts_of(records[name])
        assert facts["energy_ranks"] == [0]
        assert facts["energy_each_j"] == [energy.energy_j]
    facts = facts_of(records["overlap"])
    for side in ("compute", "comm", "both"):
        assert facts[f"{side}_power_w"] == pytest.approx(150, rel=0.03)
        low, high = facts[f"{side}_energy_range_j"]
        assert 0 < low < facts[f"{side}_energy_j"] < high
    assert facts["both_energy_j"] == energy_of(records["overlap"]).energy_j
    apart = facts["compute_energy_j"] + facts["comm_energy_j"]
    assert facts["energy_saving"] == pytest.approx(1 - facts["both_energy_j"] / apart)
    low, high = facts["energy_saving_range"]
    assert low < facts["energy_saving"] < high
    assert (facts["energy_source"], facts["energy_scope"]) == (energy.source, "package")
    assert "joules" not in facts
    # What is slowed on purpose has no joules worth a figure, and its series holds the timed iterations alone.
    assert records["stragglers"].measurement is not None
    assert records["stragglers"].measurement.energy is None
    manifest = Run(tmp_path / "run").manifest
    assert manifest["energy"]["available"] is True
    assert manifest["energy"]["name"] == "rapl"


def test_packages_of_several_hosts_are_added(
    simulated_rapl: Callable[..., Any], bench: Callable[..., dict[str, Record]]
) -> None:
    trees = [simulated_rapl(idle_w=100.0, renew_s=RENEW_S), simulated_rapl(idle_w=60.0, packages=2, renew_s=RENEW_S)]
    alone = case("overlap", collective="all_reduce", bytes=65_536, m=96, n=96, k=96, world_size=1)
    records = bench(EACH_A_HOST.format(roots=[tree.root for tree in trees]), SUM, alone)
    assert energy_of(records["all_reduce"]).power_w == pytest.approx(220, rel=0.03)
    # The second host's rank sits that one out.
    assert energy_of(records["overlap"]).power_w == pytest.approx(100, rel=0.03)
    assert facts_of(records["overlap"])["energy_ranks"] == [0]
    assert facts_of(records["overlap"])["comm_power_w"] == pytest.approx(100, rel=0.03)
    facts = facts_of(records["all_reduce"])
    assert facts["energy_ranks"] == [0, 1]
    assert facts["energy_each_j"][0] / facts["energy_each_j"][1] == pytest.approx(100 / 120, rel=0.04)


def test_a_host_without_a_sensor_leaves_no_joules_and_is_named(
    simulated_rapl: Callable[..., Any], bench: Callable[..., dict[str, Record]], tmp_path: Path
) -> None:
    (record,) = bench(EACH_A_HOST.format(roots=[simulated_rapl().root, str(tmp_path / "nothing")]), OVERLAP).values()
    assert record.measurement is not None
    assert record.measurement.energy is None
    assert "energy_saving" not in record.measurement.facts
    energy = Run(tmp_path / "run").manifest["energy"]
    assert energy["available"] is False
    assert energy["reason"]["message"].startswith("rank 1 (process ")


def test_every_gpu_is_counted_by_its_rank(
    simulated_gpus: Callable[..., Any], bench: Callable[..., dict[str, Record]], tmp_path: Path
) -> None:
    gpus = simulated_gpus("h100", count=2)
    gpus[0].demand(200.0)
    gpus[1].demand(300.0)
    own = {name: value for name, value in gpus.env.items() if os.environ.get(name) != value}
    own |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    settings = MeasureSettings(**{**SETTINGS.to_dict(), "energy_window_s": 1.5})
    (record,) = bench(EACH_A_GPU, OVERLAP, settings=settings, **own).values()
    energy = energy_of(record)
    assert energy.power_w == pytest.approx(500, rel=0.05)
    assert energy.source == "nvml: total energy counter (gpu)"
    assert energy.scope == "gpu"
    facts = facts_of(record)
    assert facts["energy_ranks"] == [0, 1]
    assert facts["energy_each_j"][0] / facts["energy_each_j"][1] == pytest.approx(2 / 3, rel=0.05)
    assert facts["compute_power_w"] == pytest.approx(500, rel=0.05)
