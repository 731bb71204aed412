"""The runner: takes a plan, a folder and a worker, and turns the first into records in the second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattline.device import DeviceSpec
from wattline.errors import DeviceError, SchemaError, UsageError
from wattline.record import Reason, Record
from wattline.run import PlannedCase, Run, RunWriter, now_iso
from wattline.stats import aa_analysis
from wattline.suites import protocol
from wattline.suites.capping import Capping
from wattline.suites.choosing import Chooser, closed, in_turn
from wattline.suites.observer import Observer as Observer  # noqa: PLC0414 - part of what a caller needs
from wattline.suites.observer import Outcome as Outcome  # noqa: PLC0414
from wattline.suites.plan import Plan
from wattline.suites.settings import MeasureSettings
from wattline.suites.signals import StopRequests
from wattline.suites.staff import Staff
from wattline.suites.supervisor import START_DEADLINE_S, StopNow, WorkerDied, WorkerHandle, WorkerHung
from wattline.trace import Trace, write_trace
from wattline.units import format_duration

if TYPE_CHECKING:
    from wattline.suites.collectives.launch import Launch

_ATTEMPTS = 2  # a case whose worker died is tried once more: the death may have come from outside
_MOST_FAILED_STARTS = 3
DISTURBING = 1.005
"""Ratio of latencies with and without the samplers above which the run says so."""
_PROBE_SILENCE_S = 60.0  # longest silence of the probe, whatever deadline the cases have


def run_bench(
    plan: Plan, out: str | Path, *, device: str = "auto", observer: Observer | None = None, command: str = "",
    launch: Launch | None = None, chooser: Chooser | None = None,
) -> Outcome:  # fmt: skip
    """Measure a plan into a new run folder.

    Args:
        plan: from :func:`wattline.suites.plan.make_plan`.
        out: the folder; must not hold a run.
        device: as :func:`wattline.collectors.device.open_device` takes it.
        observer: is told how it goes.
        command: the shell command that repeats this run, for the manifest.
        launch: how the ranks of a plan of several are started.
        chooser: decides which case is next, and when to stop; ``None``: all, in the order of the plan.

    Raises:
        UsageError: a run is in the folder already.
        StorageError: (or a kind of it) the folder cannot be written, is locked, or the disk is full. What was
            measured until then is intact.
        DeviceError: no worker can be started on this device.
    """
    manifest = {
        "device_name": device,
        "plan": {
            "preset": plan.preset,
            "arguments": dict(plan.arguments),
            "settings": plan.settings.to_dict(),
            "seed": plan.seed,
            "budget_s": plan.budget_s,
            **({"ranks": plan.ranks} if plan.ranks else {}),
            "command": command,
            # By key, so that a resumed run gives the same reasons.
            "refused": {r.case.key: {"code": r.reason.code, "message": r.reason.message} for r in plan.refused},
        },
        "totals": {},
    }
    # Refused cases are recorded as skipped, so that no gap stays silent; first, since they cost nothing.
    cases = [*(PlannedCase(refused.case) for refused in plan.refused), *plan.cases]
    with RunWriter.create(out, manifest, cases) as writer:
        return _Runner(writer, observer or Observer(), plan.budget_s, launch, chooser).go()


def resume_bench(
    out: str | Path, *, budget_s: float | None = None, observer: Observer | None = None, launch: Launch | None = None,
    chooser: Chooser | None = None,
) -> Outcome:  # fmt: skip
    """Go on with a run: measure exactly the planned cases that have no record yet.

    Args:
        out: its folder.
        budget_s: seconds for this sitting; ``None``: no limit.
        observer: is told how it goes.
        launch: how its ranks are started, if it has several.
        chooser: as in :func:`run_bench`.

    Raises:
        UsageError: the device is another than the one the run began on.
        SchemaError: the folder holds no run, or one of a newer version.
        StorageError: see :func:`run_bench`.
    """
    with RunWriter(out) as writer:
        return _Runner(writer, observer or Observer(), budget_s, launch, chooser).go()


class _Runner:
    """One sitting on one run folder."""

    def __init__(
        self, writer: RunWriter, observer: Observer, budget_s: float | None, launch: Launch | None = None,
        chooser: Chooser | None = None,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._staff = Staff(writer, launch)
        self._observer = observer
        self._chooser = chooser
        self._budget_s = budget_s
        plan = writer.manifest.get("plan")
        if not isinstance(plan, Mapping) or not {"settings", "seed"} <= plan.keys():
            why = "its run.json has no plan with settings and seed"
            raise SchemaError(f"{writer.path} does not say how it is measured", why=why, todo="start a new run")
        self._staff.check(plan)
        self._refused = {key: Reason(**reason) for key, reason in plan.get("refused", {}).items()}
        self._settings = MeasureSettings.from_dict(plan["settings"])
        self._stop = StopRequests(observer.note)
        self._begin = time.monotonic()
        self._worker: WorkerHandle | None = None
        self._capping = Capping(observer.note)
        self._gpu: dict[str, Any] | None = None  # that the workers compute on, as the first of them tells
        totals = writer.manifest.get("totals") or {}
        self._wall_before = float(totals.get("wall_s", 0.0))
        self._kernel_s = float(totals.get("kernel_s", 0.0))
        self._by_status: Counter[str] = Counter()
        self._done = 0
        self._longest_s = 0.0

    def go(self) -> Outcome:
        """Measure what is missing."""
        plan = self._writer.plan()
        done = set()
        for record in self._writer.records():
            done.add(record.identity)
            self._count(record, new=False)
        todo = [(i, planned) for i, planned in enumerate(plan) if planned.identity not in done]
        for warning in self._writer.warnings:
            self._observer.note(warning)
        self._writer.update(state="running")
        with self._stop.listening(), self._capping:
            try:
                state = self._sitting(plan, todo)
                closed(self._chooser, self._writer, state, self._observer)
            finally:
                if self._worker is not None:
                    self._worker.quit()
                    self._worker = None
                self._staff.close()
        outcome = self._finish(state, len(plan))
        self._capping.check_put_back()
        return outcome

    def _sitting(self, plan: Sequence[PlannedCase], todo: Sequence[tuple[int, PlannedCase]]) -> str:
        try:
            if todo:
                self._greet(plan)
                caps = self._capping.begin(self._gpu or {}, (planned.case for planned in plan))
                if caps is not None:
                    self._writer.update(caps=caps)
                device = DeviceSpec.from_dict(self._writer.manifest["device"])
                self._observer.run_started(
                    path=self._writer.path, device=device, planned=len(plan), done=self._done,
                    budget_s=self._budget_s,
                )  # fmt: skip
            for index, planned in in_turn(todo, self._writer, self._chooser, self._refused, self._observer):
                if self._stop.soon:
                    return "interrupted"
                if self._over_budget():
                    return "out_of_budget"
                self._observer.case_started(index, planned)
                record = self._case(index, planned)
                self._writer.append(record)
                self._count(record, new=True)
                self._observer.case_ended(record)
        except StopNow:
            return "interrupted"
        return "interrupted" if self._stop.soon and self._done < len(plan) else "complete"

    def _over_budget(self) -> bool:
        """Whether the next case might not end in time."""
        return self._budget_s is not None and self._elapsed() + self._longest_s > self._budget_s

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    # The worker

    def _greet(self, plan: Sequence[PlannedCase]) -> None:
        """Start the first worker, learn about the device and probe its ceilings."""
        manifest = self._writer.manifest
        before = manifest.get("device")
        self._observer.note("starting the worker")
        ready = self._spawn()
        if before is not None and before["id"] != ready["device"]["id"]:
            raise UsageError(
                f"this run was begun on {before['id']}, and this device is {ready['device']['id']}",
                todo="resume it on the same device, or start a new run",
            )
        if before is None:
            self._writer.update(
                device=ready["device"], environment=ready["environment"], timer=ready["timer"],
                environment_id=ready["environment_id"], energy=ready["energy"],
            )  # fmt: skip
        self._staff.greeted(ready)
        if before is not None and manifest.get("environment_id") != ready["environment_id"]:
            self._observer.note("the environment has changed since this run began; it is noted in run.json")
            entry = {"at": now_iso(), "environment_id": ready["environment_id"], "environment": ready["environment"]}
            self._writer.update(resumed=[*manifest.get("resumed", []), entry])
        if not (before or {}).get("measured"):
            self._probe(plan)

    def _probe(self, plan: Sequence[PlannedCase]) -> None:
        formats = sorted({p.case.dtype for p in plan if p.case.dtype} or {"fp32"})
        worker = self._need_worker()
        worker.send(protocol.PROBE, formats=formats)
        try:
            found = worker.wait_for(
                (protocol.PROBED,), _PROBE_SILENCE_S, lambda m: self._observer.note(m["phase"])
            )
        except (WorkerDied, WorkerHung) as event:
            what = event.describe() if isinstance(event, WorkerDied) else "it hung"
            raise DeviceError(
                "the probe of this machine's ceilings did not end", why=f"{what}; {worker.log_tail()}",
                todo=f"see {self._writer.path / 'worker.log'}",
            ) from None  # fmt: skip
        cost = found.get("sampler_overhead") or {}
        self._writer.update(device=found["device"], probe=found["probe"], sampler_overhead=cost)
        if cost.get("ratio_lo", 0.0) > DISTURBING:
            self._observer.note(f"watching slows a kernel of 100 us by {cost['ratio'] - 1:.1%} on this machine")

    def _spawn(self) -> dict[str, Any]:
        """A new worker, greeted.

        Raises:
            DeviceError: it does not come up after a few attempts.
        """
        why = ""
        for _ in range(self._staff.starts(_MOST_FAILED_STARTS)):
            self._worker = worker = self._staff.start(self._stop.now)
            device = self._writer.manifest.get("device") or {}
            worker.send(
                protocol.HELLO, device=self._writer.manifest.get("device_name", "auto"),
                settings=self._settings.to_dict(), ceilings=device.get("measured"), levels=not device,
            )  # fmt: skip
            try:
                return self._same_gpu(worker.wait_for((protocol.READY,), START_DEADLINE_S))
            except WorkerDied as event:
                why = f"{event.describe()}; {worker.log_tail()}"
                worker.kill()
            except WorkerHung:
                why = f"it said nothing for {format_duration(START_DEADLINE_S)}"
        self._worker = None
        raise DeviceError(
            "no worker process can be started", why=why, todo=f"see {self._writer.path / 'worker.log'}"
        )

    def _same_gpu(self, ready: dict[str, Any]) -> dict[str, Any]:
        """What a worker said, if it computes on the GPU that the first one did: numbers shift when one is lost."""
        before, now = self._gpu, ready["gpu"]
        if before is not None and before["uuid"] and now["uuid"] and now["uuid"] != before["uuid"]:
            raise DeviceError(
                "a new worker computes on another GPU than the one before",
                why=f"{now['uuid']} has taken the place of {before['uuid']}",
                todo="see whether nvidia-smi still lists the first; then go on with --resume",
            )
        self._gpu = before or now
        return ready

    def _need_worker(self) -> WorkerHandle:
        if self._worker is None:
            self._spawn()
        assert self._worker is not None  # _spawn sets it or raises
        return self._worker

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    # One case

    def _case(self, index: int, planned: PlannedCase) -> Record:
        """The record of one case, whatever becomes of it."""
        reason = self._refused.get(planned.case.key)
        if reason is not None:
            return self._without_figures(index, planned, "skipped", reason)
        unheld = self._capping.hold(planned.case)
        if unheld is not None:
            return self._without_figures(index, planned, *unheld)
        began, begin = now_iso(), time.monotonic()
        event: WorkerDied | None = None
        for attempt in range(self._staff.attempts(_ATTEMPTS)):
            worker = self._need_worker()
            worker.send(
                protocol.MEASURE, case=planned.case.to_dict(), variant=planned.variant,
                seed=self._seed(planned), sequence=index,
            )  # fmt: skip
            try:
                answer = worker.wait_for(
                    (protocol.RECORD, protocol.STICKY), self._settings.deadline_s, self._hear
                )
            except WorkerDied as died:
                event = died
                if self._staff.given_up(planned, died):
                    self._drop_worker()
                    continue
                self._observer.note(f"{died.describe()}" + ("; trying the case again" if attempt == 0 else ""))
                self._drop_worker()
                continue
            except WorkerHung as hung:
                self._worker = None
                limit = format_duration(self._settings.deadline_s)
                silence = f"nothing was heard of it for {limit}; the worker process was killed and replaced"
                message = str(hung) or silence
                record = self._without_figures(index, planned, "timeout", Reason("hung", message))
            else:
                if answer["kind"] == protocol.STICKY:
                    self._observer.note("the device failed for this process; the worker is replaced")
                    self._drop_worker()
                record = Record.from_json(answer["record"])
            break
        else:
            assert event is not None  # the loop only runs dry after a death
            record = self._without_figures(index, planned, "crashed", Reason("worker_died", event.describe()))
        if record.wall_s == 0.0:
            record = replace(record, started_at=began, wall_s=time.monotonic() - begin)
        return self._capping.stamp(record)

    def _without_figures(self, index: int, planned: PlannedCase, status: str, reason: Reason) -> Record:
        device = str(self._writer.manifest.get("device", {}).get("id", ""))
        return Record(
            planned.case, status, device, reason=reason, variant=planned.variant, seed=self._seed(planned),
            started_at=now_iso(), sequence=index,
        )  # fmt: skip

    def _seed(self, planned: PlannedCase) -> int:
        """Of the case's random inputs: from the run's seed and the case's key, so that a repeat has the same."""
        return (int(planned.case.key[:12], 16) ^ int(self._writer.manifest["plan"]["seed"])) & 0x7FFF_FFFF_FFFF

    def _hear(self, message: Mapping[str, Any]) -> None:
        """What a worker says before it answers: how it goes, and traces to keep."""
        if message["kind"] == protocol.SERIES:
            self._staff.keep_series(message["rank"], message["line"])
            return
        if message["kind"] == protocol.TRACE:
            write_trace(self._writer.path, Trace.from_dict(message["trace"]))
            return
        self._observer.case_progress(message["phase"], message["time_s"], message["precision"])

    # Accounts

    def _count(self, record: Record, *, new: bool) -> None:
        self._done += 1
        self._by_status[record.status] += 1
        if new:
            self._longest_s = max(self._longest_s, record.wall_s)
            if record.measurement:
                self._kernel_s += record.measurement.warmup_s + record.measurement.timed_s

    def _raise_ceilings(self) -> None:
        device = self._writer.manifest.get("device") or {}
        if not device.get("measured"):
            return
        from wattline.suites.probe import raised

        probe = dict(self._writer.manifest.get("probe") or {})
        probe["notes"] = dict(probe.get("notes") or {})
        spec = DeviceSpec.from_dict(device)
        assert spec.measured is not None  # asked above
        found = raised(spec.measured, probe["notes"], self._writer.records())
        self._writer.update(device=spec.with_measured(found).to_dict(), probe=probe)

    def _finish(self, state: str, planned: int) -> Outcome:
        wall = self._wall_before + self._elapsed()
        totals = {
            "planned": planned, "measured": self._done, "wall_s": wall, "kernel_s": self._kernel_s,
            "kernel_share": self._kernel_s / wall if wall else 0.0, "by_status": dict(self._by_status),
        }  # fmt: skip
        outcome = Outcome(
            self._writer.path, state, planned, self._done, dict(self._by_status), wall, self._kernel_s
        )
        self._raise_ceilings()
        aa = aa_of(self._writer)
        self._writer.update(state=state, totals=totals, finished_at=now_iso(), aa=aa)
        self._observer.run_ended(outcome)
        return outcome


def aa_of(run: Run) -> dict[str, Any] | None:
    """The A/A analysis of the cases that a run measured twice, as plain JSON types."""
    halves: dict[str, dict[str, Record]] = {}
    for record in run.records():
        if record.variant in ("a", "b") and record.valid:
            halves.setdefault(record.case.key, {})[record.variant] = record
    pairs = []
    for half in halves.values():
        a, b = half.get("a"), half.get("b")
        if a and b and a.measurement and b.measurement:
            pairs.append((a.measurement.stats, b.measurement.stats))
    found = aa_analysis(pairs)
    return None if found is None else found.to_dict()
