"""Joining: the ranks of a run find each other, agree on what they are, and can say later who is lost.

Each rank signs in at a store (torchrun's own where its agent keeps one, else one that rank 0 opens). When all have,
a control group on Gloo carries requests, start times and results; groups that carry the data measured are made on
demand, apart from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from wattline.errors import DeviceError, UsageError, WattlineError
from wattline.suites.collectives.world import Place
from wattline.units import format_duration

JOIN_TIMEOUT_S = 60.0
"""How long ranks wait for each other at the start, unless told otherwise."""
_CONTROL_S = 24 * 3600.0  # between two cases ranks wait for rank 0, however long; a lost connection ends it at once
_SAME = ("wattline", "torch")  # versions that must agree: both sides of every exchange are theirs
_FAREWELL_S = 2.0


class RanksLostError(WattlineError):
    """The group of ranks is broken: one of them died, hung or failed alone, and no more can be exchanged.

    Attributes:
        hung: nobody is known to have died; an operation did not go on in time.
    """

    hung: bool = False


class World:
    """The ranks that have joined, seen from one of them.

    Args:
        place: where this process stands.
        device_kind: torch's device type that it computes on.
        timeout_s: longest wait for the others.

    Attributes:
        place: as given.
        members: what every rank said when it signed in, by rank: host, pid, boot, versions, device.

    Raises:
        DeviceError: the meeting point cannot be opened or reached, or ranks are missing after the timeout.
        UsageError: the ranks run different versions, or one rank joined twice.
    """

    def __init__(self, place: Place, device_kind: str = "cpu", timeout_s: float = JOIN_TIMEOUT_S) -> None:
        import torch.distributed as dist

        self.place = place
        self._dist = dist
        self._prefix = f"wattline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._groups: dict[tuple[str, tuple[int, ...], float], Any] = {}
        self.members: list[dict[str, Any]] = []
        self._steps, self._doing = 0, "joining"
        self._store = _open_store(place, timeout_s)
        try:
            self._sign_in(device_kind, timeout_s)
        except dist.DistError as error:
            raise DeviceError(
                f"{place.describe()} lost the meeting point {place.address}:{place.port} while joining",
                why=_first_line(error), todo="see whether rank 0 is still running there",
            ) from error  # fmt: skip
        try:
            dist.init_process_group(
                "gloo", store=dist.PrefixStore(f"{self._prefix}/control", self._store), rank=place.rank,
                world_size=place.world, timeout=timedelta(seconds=_CONTROL_S),
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise self._no_group(error) from error

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.place.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.place.world

    def named(self, rank: int) -> str:
        """``rank 1 (process 4711 on n2)``."""
        if rank >= len(self.members):
            return f"rank {rank}"
        return f"rank {rank} (process {self.members[rank]['pid']} on {self.members[rank]['host']})"

    def one_clock(self, rank: int) -> bool:
        """Whether a rank reads the same monotonic clock as rank 0: both run under one boot of one kernel."""
        return bool(self.members[rank]["boot"]) and self.members[rank]["boot"] == self.members[0]["boot"]

    # Joining

    def _sign_in(self, device_kind: str, timeout_s: float) -> None:
        import torch

        from wattline import __version__

        place, store = self.place, self._store
        if store.add(f"{self._prefix}/count/{place.rank}", 1) > 1:
            raise UsageError(
                f"rank {place.rank} joined twice at {place.address}:{place.port}",
                why="two processes have the same rank, or another run meets at the same port",
                todo="give each run a port of its own (MASTER_PORT), and each process a rank of its own",
            )
        mine = {
            "rank": place.rank, "world": place.world, "host": socket.gethostname(), "pid": os.getpid(),
            "boot": _boot_id(), "wattline": __version__, "torch": str(torch.__version__), "device": device_kind,
            "python": ".".join(map(str, sys.version_info[:3])),
        }  # fmt: skip
        store.set(f"{self._prefix}/rank/{place.rank}", json.dumps(mine))
        keys = [f"{self._prefix}/rank/{rank}" for rank in range(place.world)]
        # The store's clock starts when it is asked: what connecting took is no longer there to wait.
        deadline = time.monotonic() + timeout_s
        while not store.check(keys):
            if time.monotonic() > deadline:
                missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
                raise DeviceError(
                    f"only {place.world - len(missing)} of {place.world} ranks joined within "
                    f"{format_duration(timeout_s)}",
                    why=f"missing: {_ranks(missing)}; said by {place.describe()}",
                    todo="see what these ranks printed; `--timeout 5m` waits longer",
                )
            time.sleep(0.02)
        self.members = [json.loads(store.get(key)) for key in keys]
        for name in (*_SAME, "world"):
            values = {str(member[name]): rank for rank, member in reversed(list(enumerate(self.members)))}
            if len(values) > 1:
                each = ", ".join(f"rank {rank} has {value}" for value, rank in sorted(values.items()))
                what = f"versions of {name}" if name in _SAME else "sizes of the world"
                raise UsageError(f"the ranks have different {what}", why=each, todo="give all of them the same")

    def _no_group(self, error: Exception) -> DeviceError:
        name = os.environ.get("GLOO_SOCKET_IFNAME", "")
        here = [interface for _, interface in socket.if_nameindex()]
        wrong = [part for part in name.split(",") if part and part not in here]
        if wrong:
            return DeviceError(
                f"{self.place.describe()} has no network interface {', '.join(wrong)}",
                why=f"GLOO_SOCKET_IFNAME={name}; there are {', '.join(here)}",
                todo="name one that reaches the other ranks, or unset GLOO_SOCKET_IFNAME",
            )
        return DeviceError(
            f"{self.place.describe()} cannot connect to the others", why=_first_line(error),
            todo="set GLOO_SOCKET_IFNAME to an interface that reaches them (`ip address` lists them)",
        )  # fmt: skip

    # Control

    def tell(self, message: Any = None) -> Any:
        """Rank 0's message on every rank; the others wait for it.

        Raises:
            RanksLostError: rank 0 or a connection is gone.
        """
        box = [message]
        with self.guarded("waiting for rank 0's word"):
            self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_say(self, value: Any, doing: str) -> list[Any]:
        """Every rank's value on every rank, by rank. Raises as :meth:`tell`."""
        found: list[Any] = [None] * self.size
        with self.guarded(doing):
            self._dist.all_gather_object(found, value)
        return found

    def hand_in(self, value: Any, doing: str) -> list[Any] | None:
        """Every rank's value on rank 0, ``None`` elsewhere. Raises as :meth:`tell`."""
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self.guarded(doing):
            self._dist.gather_object(value, found, dst=0)
        return found

    @contextlib.contextmanager
    def guarded(self, doing: str, kinds: tuple[type[BaseException], ...] = (RuntimeError,)) -> Iterator[None]:
        """Turn what torch.distributed (or, with other ``kinds``, a kernel) raises into a :class:`RanksLostError` that
        names who is lost."""
        self.mark(doing)
        try:
            yield
        except kinds as error:
            raise self._lost(doing, error) from error

    def data_group(self, backend: str, ranks: Sequence[int], timeout_s: float) -> Any:
        """The group of some ranks for data; all ranks must ask for it, in the same order.

        Args:
            backend: ``"gloo"``, ``"nccl"`` ...
            ranks: its members, by their number in the world.
            timeout_s: after which an operation that does not go on fails.
        """
        key = (backend, tuple(ranks), timeout_s)
        if key not in self._groups:
            with self.guarded(f"making a group on {backend}"):
                self._groups[key] = self._dist.new_group(
                    list(ranks), backend=backend, timeout=timedelta(seconds=timeout_s)
                )
        return self._groups[key]

    def forget_groups(self) -> None:
        """Make the next case's groups anew; called by all ranks."""
        self._groups.clear()

    def mark(self, doing: str) -> None:
        """Note what this rank does next: where nothing moves any more, the ranks compare how far they came."""
        self._steps, self._doing = self._steps + 1, doing

    # Losses

    def who_is_behind(self, wait_s: float) -> str:
        """Asked by every rank's watchdog when nothing moves: who has come least far, and what it was doing."""
        found: dict[int, tuple[int, str]] = {}
        try:
            self._store.set(f"{self._prefix}/stuck/{self.rank}", json.dumps([self._steps, self._doing]))
            deadline = time.monotonic() + wait_s
            while len(found) < self.size and time.monotonic() < deadline:
                for rank in range(self.size):
                    if rank not in found and self._store.check([f"{self._prefix}/stuck/{rank}"]):
                        found[rank] = tuple(json.loads(self._store.get(f"{self._prefix}/stuck/{rank}")))
                time.sleep(0.02)
        except RuntimeError as error:
            return f"the meeting point is gone too: {_first_line(error)}"
        silent = [self.named(rank) for rank in range(self.size) if rank not in found]
        if silent:
            return f"{' and '.join(silent)} says nothing"
        least = min(steps for steps, _ in found.values())
        behind = [(rank, doing) for rank, (steps, doing) in sorted(found.items()) if steps == least]
        if len(behind) == self.size:
            return f"all ranks hang while {behind[0][1]}"
        return " and ".join(f"{self.named(rank)} hangs while {doing}" for rank, doing in behind)

    def _lost(self, doing: str, error: BaseException) -> RanksLostError:
        """Every survivor leaves word; who left none is lost."""
        said, silent, store = {self.rank: _first_line(error)}, [], True
        try:
            self._store.set(f"{self._prefix}/lost/{self.rank}", f"{doing}: {_first_line(error)}")
            waiting = [rank for rank in range(self.size) if rank != self.rank]
            deadline = time.monotonic() + _FAREWELL_S
            while waiting and time.monotonic() < deadline:
                for rank in list(waiting):
                    if self._store.check([f"{self._prefix}/lost/{rank}"]):
                        said[rank] = self._store.get(f"{self._prefix}/lost/{rank}").decode(errors="replace")
                        waiting.remove(rank)
                time.sleep(0.02)
            silent = waiting
        except RuntimeError:  # the store is gone too
            store = False
        if not store:
            keeper = "the launcher" if self.place.store_kept else self.named(0)
            what = f"{keeper}, which keeps the meeting point, is lost"
        elif silent:
            what = f"{' and '.join(self.named(rank) for rank in silent)} died or hangs"
        else:
            what = "the ranks lost each other"
        each = "; ".join(f"rank {rank}: {text}" for rank, text in sorted(said.items()))
        lost = RanksLostError(
            what, why=f"noticed by {self.place.describe()} while {doing}: {each}",
            todo="see worker.log in the run's folder, or what that rank printed; `wattline bench --resume` goes on",
        )  # fmt: skip
        # Gloo's and NCCL's words; where a connection was reset instead, a process has died.
        lost.hung = all("timed out" in text.lower() or "timeout" in text.lower() for text in said.values())
        return lost

    def leave(self) -> None:
        """End in good order; called by all ranks."""
        with contextlib.suppress(RuntimeError):
            self._dist.barrier()
            self._dist.destroy_process_group()


def _open_store(place: Place, timeout_s: float) -> Any:
    import torch.distributed as dist

    opens = place.rank == 0 and not place.store_kept
    where = f"{place.address}:{place.port}"
    try:
        return dist.TCPStore(
            place.address, place.port, place.world, is_master=opens, timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        if opens and "address already in use" in str(error).lower():
            raise DeviceError(
                f"the port {place.port} of the meeting point is taken",
                why=f"{place.describe()} cannot listen there: another program does",
                todo="set MASTER_PORT to a free port on every rank",
            ) from None
        raise DeviceError(
            f"{place.describe()} cannot {'open' if opens else 'reach'} the meeting point {where}",
            why=_first_line(error),
            todo="MASTER_ADDR must be the host of rank 0, and MASTER_PORT free and open there"
            + ("" if opens else "; rank 0 must have been started"),
        ) from error


def _boot_id() -> str:
    """Names one boot of one kernel: its processes share the monotonic clock. Empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
            return handle.read().strip()
    except OSError:
        return ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _ranks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:16])) + (", ..." if len(numbers) > 16 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
