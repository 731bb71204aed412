"""A rank of a group: rank 0 hears the runner's requests and passes them on, all carry them out, rank 0 answers.

Started by torchrun (``python -m torch.distributed.run ... -m wattline.suites.collectives.member``), by the runner
alone inside torchrun or srun, or in process on the other ranks there. Requests and answers go over a socket that is
rank 0's standard input: torchrun passes no other descriptor on. A rank ends when its parent does, when the group is
broken, and when nothing moves for too long; it says why each time.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wattline.case import Case
from wattline.collectors.device import Device, open_device
from wattline.collectors.energy import find_energy_sensor
from wattline.collectors.nvml_device import identify
from wattline.device import Ceilings, DeviceSpec
from wattline.errors import DeviceError, UsageError, WattlineError
from wattline.run import PlannedCase
from wattline.suites import protocol
from wattline.suites.collectives.join import JOIN_TIMEOUT_S, RanksLostError, World
from wattline.suites.collectives.joules import GroupMeter
from wattline.suites.collectives.measure import GroupCaseRunner
from wattline.suites.collectives.world import Place, find_place
from wattline.suites.machine import greeting, machine_of, may_have_accelerator, sensor_facts
from wattline.suites.measure.case import KERNEL_ERRORS, sticky_record
from wattline.suites.settings import MeasureSettings
from wattline.suites.worker import die_with_parent
from wattline.suites.workload import Machine

LOST = 3
"""Exit status of a rank whose group is broken."""
STUCK = 4
"""Exit status of a rank in which nothing moved for too long."""
_PATIENCE, _ASKING = 0.7, 0.1  # of the deadline, before a rank gives up by itself, and to ask who is behind
_LAST_WORDS_S = 3.0
_NO_LEVELS = "not measured in a run of several ranks"


class Watchdog(threading.Thread):
    """Ends the process when nothing moves, or when it is told to go; works while the main thread is inside a library.

    Args:
        place: for what is said.
        last_word: sends it to the runner; rank 0 only.

    Attributes:
        world: the ranks, once they have joined.
    """

    def __init__(self, place: Place, last_word: Any = None) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._place, self._last_word = place, last_word
        self.world: World | None = None
        self._limit_s, self._heard, self._doing = 0.0, 0.0, ""
        self._mutex = threading.Lock()

    def arm(self, limit_s: float, doing: str) -> None:
        """From now on, something must move every ``limit_s`` seconds."""
        with self._mutex:
            self._limit_s, self._heard, self._doing = limit_s, time.monotonic(), doing

    def alive(self) -> None:
        """Something moved."""
        self._heard = time.monotonic()

    def disarm(self) -> None:
        """Waiting is no fault now."""
        with self._mutex:
            self._limit_s = 0.0

    def run(self) -> None:
        """See :class:`threading.Thread`."""
        while True:
            # SIGTERM is blocked in every thread and taken here: a handler would wait for the main thread.
            if signal.sigtimedwait([signal.SIGTERM], 0.2) is not None:
                self._told_to_end()
            with self._mutex:
                late = self._limit_s and time.monotonic() - self._heard > self._limit_s
            if late:
                what = f"{self._place.describe()} made no progress for {self._limit_s:.0f} s while {self._doing}"
                wait_s = self._limit_s * _ASKING / _PATIENCE
                why = "the others do not answer" if self.world is None else self.world.who_is_behind(wait_s)
                self._say(what, f"{why}; this rank's stack is above")
                os._exit(STUCK)

    def _told_to_end(self) -> None:
        # The main thread may be about to say what happened: its word is better than ours.
        time.sleep(_LAST_WORDS_S)
        self._say(
            f"{self._place.describe()} was told to end (SIGTERM)", "the launcher stops all ranks when one has failed",
            stack=False,
        )  # fmt: skip
        os._exit(128 + signal.SIGTERM)

    def _say(self, what: str, why: str, *, stack: bool = True) -> None:
        if stack:
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        error = RanksLostError(what, why=why, todo="finished cases are kept; `wattline bench --resume` goes on")
        error.hung = stack
        say(error, self._place)
        if self._last_word is not None:
            self._last_word(error)


def say(error: WattlineError, place: Place) -> None:
    """An error on stderr, three lines, with the rank that it comes from."""
    lines = [f"error: [rank {place.rank}] {error.what}"]
    lines += [f"  why: {error.why}"] if error.why else []
    lines += [f"  do: {error.todo}"] if error.todo else []
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


class Member:
    """One rank: carries out what rank 0 was asked.

    Args:
        world: the ranks, joined.
        device: this rank's.
        send: sends an answer to the runner; rank 0's, elsewhere it goes nowhere.
        watchdog: told what moves.
    """

    def __init__(self, world: World, device: Device, send: Any, watchdog: Watchdog) -> None:
        self._world, self._device, self._send, self._watchdog = world, device, send, watchdog
        self._machine: Machine = replace(machine_of(device), ranks=world.size)
        self._spec: DeviceSpec = device.spec()
        self._settings = MeasureSettings()
        self._runner: GroupCaseRunner | None = None
        self._meter: GroupMeter | None = None

    def handle(self, message: Mapping[str, Any]) -> None:
        """Carry out one request, on all ranks.

        Raises:
            RanksLostError: the group is broken.
        """
        handlers = {protocol.HELLO: self._hello, protocol.PROBE: self._probe, protocol.MEASURE: self._measure}
        handlers[message["kind"]](message)

    def _hello(self, message: Mapping[str, Any]) -> None:
        if message.get("ceilings"):
            self._spec = self._spec.with_measured(Ceilings.from_dict(message["ceilings"]))
        self._settings = MeasureSettings.from_dict(message["settings"])
        gpu = identify(self._device.kind, self._device.index)
        sensor = find_energy_sensor(self._device.kind, index=self._device.index, uuid=gpu.uuid)
        self._meter = GroupMeter(self._world, sensor, self._settings.energy_window_s, progress=self._progress)
        self._renew()
        devices = self._world.all_say(self._spec.id, "comparing devices")
        if self._world.rank:
            return
        energy = sensor_facts(sensor, reason=self._meter.reason, levels_missing=_NO_LEVELS)
        ranks = [{**member, "device_id": each} for member, each in zip(self._world.members, devices, strict=True)]
        self._send(protocol.READY, **greeting(self._device, self._spec, gpu, energy), ranks=ranks)

    def _renew(self) -> None:
        self._runner = GroupCaseRunner(
            self._world, self._device, self._machine, self._spec, self._settings, progress=self._progress,
            alive=self._watchdog.alive, meter=self._meter,
        )  # fmt: skip

    def _probe(self, message: Mapping[str, Any]) -> None:
        """Ceilings of rank 0's device, while the others rest: memory and launches; no arithmetic is measured here."""
        if self._world.rank:
            return
        from wattline.suites.probe import probe

        found = probe(
            self._device, self._machine, (),
            lambda what: self._send(protocol.PROGRESS, phase=f"probe: {what}", time_s=None, precision=None),
        )  # fmt: skip
        self._spec = self._spec.with_measured(found.ceilings)
        self._renew()
        self._send(protocol.PROBED, device=self._spec.to_dict(), probe=found.to_dict(), sampler_overhead={})

    def _measure(self, message: Mapping[str, Any]) -> None:
        assert self._runner is not None  # the runner greets first
        planned = PlannedCase(Case.from_dict(message["case"]), message["variant"])
        seed, sequence = message["seed"], message["sequence"]
        self._watchdog.arm(_PATIENCE * self._settings.deadline_s, f"measuring {planned.case.label()}")
        try:
            record = self._runner.run(planned, seed=seed, sequence=sequence)
        except (DeviceError, *KERNEL_ERRORS) as error:
            sticky = sticky_record(error, planned, self._spec.id, seed=seed, sequence=sequence)
            self._send(protocol.STICKY, record=sticky.to_json())
            why = sticky.reason.message if sticky.reason else ""
            raise RanksLostError(
                f"{self._world.place.describe()} cannot go on", why=why, todo="the group is formed anew"
            ) from error
        finally:
            self._watchdog.disarm()
        for series in self._runner.series:
            self._send(protocol.SERIES, rank=series.rank, line=series.line)
        self._send(protocol.RECORD, record=record.to_json())

    def _progress(self, phase: str, time_s: float | None, precision: float | None) -> None:
        self._send(protocol.PROGRESS, phase=phase, time_s=time_s, precision=precision)


def _nowhere(kind: str, **content: Any) -> None:
    """Where the answers of ranks other than 0 go."""


def requests() -> Iterator[dict[str, Any]]:
    """The runner's requests, until its end of the socket is closed."""
    buffer = b""
    while chunk := os.read(0, 1 << 16):
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield protocol.decode(line)


def open_rank_device(name: str, place: Place) -> Device:
    """The device of a rank: the CPU, or the accelerator of its number on the host.

    Raises:
        UsageError: one accelerator is named for all of them.
        UnsupportedError: this host has no such device, or fewer than ranks.
    """
    kind, colon, _ = name.partition(":")
    if colon and place.world > 1:
        raise UsageError(
            f"--device {name} names one device for {place.world} ranks", todo=f"use --device {kind}: ranks take turns"
        )
    if name == "cpu" or (name == "auto" and not may_have_accelerator()):
        return open_device("cpu")
    first = open_device(name)
    if first.kind == "cpu" or place.local_rank == first.index:
        return first
    return open_device(f"{first.kind}:{place.local_rank}")


def _threads(place: Place) -> None:
    """Ranks of one host share its cores, unless OMP_NUM_THREADS says otherwise (torchrun sets it to 1)."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and place.local_world > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_world))


def serve(device_name: str, timeout_s: float) -> int:
    """Be a rank until told to quit; returns the exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    place = find_place()
    send: Any = _nowhere
    if place.rank == 0:
        send = protocol.Sender(0).send
    else:
        # Held open by this rank too, the runner's socket would not show that rank 0 has gone.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    watchdog = Watchdog(place, (lambda error: _tell_lost(send, error)) if place.rank == 0 else None)
    watchdog.start()
    watchdog.arm(timeout_s + 30.0, "joining the other ranks")
    try:
        import torch

        torch.set_grad_enabled(False)
        _threads(place)
        device = open_rank_device(device_name, place)
        world = World(place, device.kind, timeout_s)
        watchdog.world = world
        watchdog.disarm()
        return _follow(world, Member(world, device, send, watchdog))
    except RanksLostError as error:
        watchdog.disarm()
        say(error, place)
        _tell_lost(send, error)
        return LOST
    except WattlineError as error:
        watchdog.disarm()
        say(error, place)
        send(protocol.FAILED, error=type(error).__name__, what=error.what, why=error.why, todo=error.todo)
        return error.exit_code


def _follow(world: World, member: Member) -> int:
    if world.rank == 0:
        for message in requests():
            if message["kind"] == protocol.QUIT:
                break
            world.tell(message)
            member.handle(message)
        world.tell({"kind": protocol.QUIT})
    else:
        while (message := world.tell())["kind"] != protocol.QUIT:
            member.handle(message)
    world.leave()
    return 0


def _tell_lost(send: Any, error: WattlineError) -> None:
    try:
        send(protocol.LOST, what=error.what, why=error.why, hung=getattr(error, "hung", False))
    except OSError:
        return  # the runner is gone, or was never there: stderr has it


def main(argv: Sequence[str]) -> int:
    """Be the rank that the environment says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="wattline.suites.collectives.member")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--timeout", type=float, default=JOIN_TIMEOUT_S)
    given = parser.parse_args(argv)
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides what Ctrl-C means
    status = serve(given.device, given.timeout)
    # Skip the teardown of libraries: after a lost rank it may hang.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
