"""Workloads and implementations: what an operation is, and the ways to run it.

A workload declares parameters and work, makes inputs and a callable, and knows a reference of higher precision.
It measures nothing: the loop in :mod:`wattline.suites.measure` owns clocks, buffers and statistics. This module
and the modules that define workloads import torch inside functions only, so that a listing stays quick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from wattline.errors import unknown_name
from wattline.params import Params, Value
from wattline.reasons import Reason

if TYPE_CHECKING:
    from wattline.case import Case
    from wattline.stats import TimeStats
    from wattline.work import Work

ParamValues = Mapping[str, Value]


@dataclass
class Kernel:
    """An operation ready to run on one set of buffers.

    Attributes:
        call: runs it once; on an accelerator it may return before the device is done. Returns the result (the
            tensor it wrote into, or a new one).
        inputs: the input tensors by name, as the reference wants them.
        output: the preallocated result, or ``None`` where every call allocates its own. The loop fills it with
            NaN (integers: the smallest value) before the check, so that an unwritten element shows.
        eager: the operation as a Python caller writes it, result allocated; for the regime ``eager``. ``None``:
            the same as ``call``.
        extra_bytes: memory beyond inputs and output, such as packed weights or a workspace.
        facts: what is worth recording of this kernel by name: numbers, words, or lists of them. The build fills it
            (``compile_s``, ``tokens_per_expert``), and so may the check (``scheme_error``).
        prepare: run before every call and not timed: what a call uses up and the next one needs anew, such as a cold
            page cache. A load without gaps is then impossible, so no joules are measured.
    """

    call: Callable[[], Any]
    inputs: Mapping[str, Any]
    output: Any = None
    eager: Callable[[], Any] | None = None
    extra_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Machine:
    """What a requirement may ask about: plain facts, no torch objects.

    Attributes:
        kind: ``"cpu"``, ``"cuda"``, ``"xpu"``, ``"hpu"`` ...: torch's device type.
        hip: the device type ``"cuda"`` is AMD's.
        sm: NVIDIA compute capability as an integer (90 for 9.0), 0 elsewhere.
        torch_version: ``(2, 13)``.
        memory_bytes: memory of the device.
        cache_bytes: its last-level cache.
        energy: name of the sensor that measures joules here; empty without one.
        ranks: how many take part in the run; 0: it is the run of one device.
    """

    kind: str = "cpu"
    hip: bool = False
    sm: int = 0
    torch_version: tuple[int, int] = (0, 0)
    memory_bytes: int = 0
    cache_bytes: int = 0
    energy: str = ""
    ranks: int = 0


@dataclass(frozen=True)
class Requirement:
    """Something an implementation needs.

    Attributes:
        text: in words, for `wattline list`.
        unmet: the reason it does not hold for these parameters on this machine, or ``None``.
    """

    text: str
    unmet: Callable[[ParamValues, Machine], Reason | None]


class BuildContext(ABC):
    """What a build function gets: a device, a seeded source of numbers and the fill that the case asks for."""

    torch_device: Any
    machine: Machine

    @abstractmethod
    def tensor(self, shape: Sequence[int], fmt: str) -> Any:
        """A tensor on the device in number format ``fmt``, filled as the case's ``data`` says."""

    @abstractmethod
    def empty(self, shape: Sequence[int], fmt: str) -> Any:
        """An uninitialised tensor on the device in number format ``fmt``."""

    def defer(self, action: Callable[[], object]) -> None:
        """Run ``action`` when the case is over, whatever became of it: files closed, threads ended, switches put back.

        Actions run in reverse order, also where the build itself fails after having asked for them.
        """
        if "_deferred" not in self.__dict__:
            self.__dict__["_deferred"] = ExitStack()
        self.__dict__["_deferred"].callback(action)

    def close(self) -> None:
        """Run what was deferred, once."""
        deferred = self.__dict__.pop("_deferred", None)
        if deferred is not None:
            deferred.close()


Build = Callable[[ParamValues, BuildContext], Kernel]


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation.

    Attributes:
        op: the operation.
        name: its name, e.g. ``"torch"``.
        build: makes a kernel.
        requires: what it needs; the first unmet one becomes the record's reason.
        doc: one line.
    """

    op: str
    name: str
    build: Build
    requires: tuple[Requirement, ...] = ()
    doc: str = ""

    def unmet(self, params: ParamValues, machine: Machine) -> Reason | None:
        """Why it cannot run here with these parameters, or ``None``."""
        for requirement in self.requires:
            reason = requirement.unmet(params, machine)
            if reason is not None:
                return reason
        return None


class Workload(ABC):
    """One operation. Subclasses are registered with :func:`wattline.suites.registry.workload`.

    The class docstring's first line is shown by `wattline list`.
    """

    op: ClassVar[str] = ""
    params: ClassVar[Params]
    shape_sources: ClassVar[Mapping[str, Callable[..., Iterator[dict[str, Any]]]]] = {}
    """Named generators of parameter sets that a preset may ask for (`shapes = { source = "squares", ... }`)."""
    regime: ClassVar[str] = "cold"
    """The regime of cases that are asked for without naming one: ``"hot"`` where the working set is the question."""
    tracks_memory: ClassVar[bool] = False
    """Whether the loop measures the memory that a call takes beyond its buffers, as the fact ``peak_bytes``."""
    distributed: ClassVar[bool] = False
    """Whether several ranks do it together: such operations are measured in runs of their own."""

    def placed(self, case: Case, machine: Machine) -> Case:
        """The case with what only the machine can tell settled: parameters that stand for "all ranks" and the like."""
        return case

    def work(self, p: ParamValues) -> Work:
        """FLOPs and bytes; by default the registered work model of the operation."""
        from wattline.workmodels import work_of

        return work_of(self.op, p)

    def footprint(self, p: ParamValues) -> float:
        """Bytes of one set of buffers; by default what the work model reads and writes."""
        return self.work(p).bytes_at()

    @abstractmethod
    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """Inputs and a callable for the workload's own implementation. Not timed."""

    @abstractmethod
    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """Compare a result with a reference of higher precision.

        Returns:
            The error ||out - ref|| / ||ref||, its tolerance, and the method (``"full"`` or how it was sampled).
        """

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """Facts that only the measured time, or all of its calls together, can tell: a bandwidth, a stall, a tail.

        Args:
            p: the case.
            kernels: one for each set of buffers.
            stats: of the seconds per call.
        """
        return {}

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """Parameters of a smaller case of the same kind whose speed tells whether this one is affordable.

        Args:
            p: the case in question.
            size: largest extent that the smaller case may have.

        Returns:
            Complete parameters, or ``None`` where ``p`` is itself no larger than that.
        """
        return None

    def shapes(self, source: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Parameter sets of a named source.

        Raises:
            UnknownNameError: no such source.
        """
        if source not in self.shape_sources:
            raise unknown_name(f"shape source of {self.op}", source, self.shape_sources)
        return self.shape_sources[source](**arguments)


@dataclass
class Entry:
    """A registered workload with its implementations by name."""

    workload: Workload
    implementations: dict[str, Implementation] = field(default_factory=dict)
