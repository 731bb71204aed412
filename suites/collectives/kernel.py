"""Workloads of several ranks: what they are beside those of one device, and what a build function gets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from wattline.case import Case
from wattline.params import Choice, Int, Param
from wattline.reasons import Reason
from wattline.suites.fills import Builder
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload

Verdict = tuple[float, float, str]
"""Error, tolerance, and how it was found."""

FORMATS = ("fp32", "fp64", "fp16", "bf16", "int8")
"""Number formats that Gloo and NCCL both reduce."""


@dataclass
class Comm:
    """The ranks that take part in one case, seen from one of them.

    Attributes:
        rank: number within the group; -1 where this rank sits the case out.
        size: ranks of the group.
        group: torch's group.
        members: the group's ranks by their number in the world.
        backend: ``"gloo"``, ``"nccl"`` ...
        index: which of several groups side by side.
        world_rank: this process's number in the world.
    """

    rank: int
    size: int
    group: Any
    members: tuple[int, ...]
    backend: str
    index: int = 0
    world_rank: int = 0

    def peer(self, rank: int) -> int:
        """The number in the world of a rank of the group (send and receive want that one)."""
        return self.members[rank % self.size]

    def exchange(self, steps: Sequence[tuple[str, Any, int]]) -> None:
        """Start sends and receives together and wait for all of them.

        Args:
            steps: ``("send" or "recv", tensor, rank within the group)``.
        """
        import torch.distributed as dist

        calls = {"send": dist.isend, "recv": dist.irecv}
        ops = [dist.P2POp(calls[what], tensor, self.peer(rank), group=self.group) for what, tensor, rank in steps]
        for work in dist.batch_isend_irecv(ops) if ops else ():
            work.wait()


@dataclass
class GroupKernel(Kernel):
    """An operation of several ranks, ready to run.

    Attributes:
        verify: compares what the latest call left with what it must be, bit by bit where nothing is rounded.
        refresh: puts the inputs back that calls change (a sum in place grows); run before every sample, not timed.
        asynchronous: a call starts the operation and returns torch's handle of it.
        token: what must be the same on every rank, in words (``"1024 x fp32"``); compared before anything is sent.
        stages: parts of the operation by name, each measured alone after the whole: facts ``<name>_s``.
        finish: derives further facts from those of all stages; run on rank 0.
        per_rank: read on every rank after the measurement and recorded from those that take part, as lists by rank.
        moved_bytes: S as really used, where sizes are rounded to whole elements; 0: the case's ``bytes``.
        metered: whether joules are measured where there is a sensor: not of what is slowed on purpose.
        metered_stages: stages whose joules are measured apart as well; ``finish`` finds those of all of them, and of
            the ``"call"``, in the fact ``"joules"``, where there are some.
    """

    verify: Callable[[], Verdict] | None = None
    refresh: Callable[[], Any] | None = None
    asynchronous: bool = False
    token: str = ""
    stages: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    finish: Callable[[dict[str, Any]], None] | None = None
    per_rank: Callable[[], dict[str, Any]] | None = None
    moved_bytes: int = 0
    metered: bool = True
    metered_stages: Sequence[str] = ()


class GroupContext(Builder):
    """The build context of a case of several ranks: that of one device, and the ranks that take part.

    Attributes:
        comm: the ranks.
        seed: of the case, the same on every rank.
    """

    comm: Comm
    seed: int = 0


WORLD: dict[str, Param] = {
    "world_size": Int(0, lo=0, doc="ranks that take part in each group; 0: as many as there are"),
    "groups": Int(1, doc="groups side by side that do the same at the same time"),
    "backend": Choice("auto", "gloo", "nccl", "mpi", doc="auto: NCCL (RCCL) on GPUs, Gloo on CPUs"),
}
"""Parameters that all operations of several ranks share."""


class GroupWorkload(Workload):
    """An operation of several ranks."""

    distributed: ClassVar[bool] = True
    lowest_ranks: ClassVar[int] = 1
    """With fewer ranks there is nothing to measure."""

    def placed(self, case: Case, machine: Machine) -> Case:
        """The case with ``world_size`` and ``backend`` settled for a run of so many ranks on such devices."""
        p = dict(case.params)
        if not p.get("world_size"):
            p["world_size"] = max(1, machine.ranks // int(p["groups"]))
        if p.get("backend") == "auto":
            p["backend"] = "gloo" if machine.kind == "cpu" else "nccl"
        return replace(case, params=p)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> Verdict:
        """See :meth:`Workload.check`; the kernel itself knows."""
        verify = getattr(kernel, "verify", None)
        return (0.0, 0.0, "nothing to compare") if verify is None else verify()

    @abstractmethod
    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """See :meth:`Workload.build`."""


def enough_ranks(lowest: int = 1) -> Requirement:
    """As many ranks as the case wants, and at least so many."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        wanted, groups = int(p["world_size"]), int(p.get("groups", 1))
        if wanted < lowest:
            return Reason("too_few_ranks", f"it needs at least {lowest} ranks in a group, and {wanted} takes part")
        if wanted * groups > max(1, machine.ranks):
            asked = f"{groups} groups of {wanted} ranks" if groups > 1 else f"{wanted} ranks"
            return Reason("too_few_ranks", f"it needs {asked}, and this run has {max(1, machine.ranks)}")
        return None

    return Requirement("as many ranks as world_size says" + (f", at least {lowest}" if lowest > 1 else ""), unmet)


def backend_here() -> Requirement:
    """A backend that moves this device's memory."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        backend = p["backend"]
        if backend == "nccl" and machine.kind != "cuda":
            return Reason("no_nccl", f"NCCL moves the memory of GPUs, and this device is of type {machine.kind}")
        if backend == "mpi":
            import torch.distributed as dist

            if not dist.is_mpi_available():
                return Reason("no_mpi", "this build of torch has no MPI; it must be built from source for that")
            return Reason("mpi_launch", "torch's MPI cannot be added to ranks that torchrun or srun has started")
        return None

    return Requirement("a backend for the device", unmet)


def unless(text: str, code: str, refusal: Callable[[ParamValues], str]) -> Requirement:
    """Parameters that the operation can take.

    Args:
        text: what is needed, in words.
        code: of the reason.
        refusal: why these parameters will not do; empty where they do.
    """

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        why = refusal(p)
        return Reason(code, why) if why else None

    return Requirement(text, unmet)


def summable(limits: Mapping[str, int]) -> Requirement:
    """Few enough ranks that a sum of small whole numbers over them is exact in the format."""

    def refusal(p: ParamValues) -> str:
        most = limits[str(p["dtype"])]
        if int(p["world_size"]) <= most:
            return ""
        return f"a sum over more than {most} ranks cannot be checked bit by bit in {p['dtype']}"

    return unless("a sum that the format holds exactly", "not_exact", refusal)

