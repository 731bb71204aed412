"""The analytical side of a prediction: the physical bound, and the features in which kernels of all devices agree.

Every formula here is written once against a tiny namespace of functions, ``ONE`` (floats) or ``MANY`` (numpy
arrays), so that a single estimate and a batch of a million rows follow the same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattline.device import DeviceSpec
from wattline.errors import ParamError
from wattline.predictors.priors import powered_rate
from wattline.workmodels import WorkModel

TINY = 1e-12
"""Seconds below which no term matters; keeps logarithms finite."""
WARM_REGIMES = frozenset({"", "hot", "eager"})
"""Regimes whose inputs may lie in the last-level cache ('' is a table that does not say)."""


class One:
    """Functions of plain floats."""

    log2 = staticmethod(math.log2)
    ceil = staticmethod(math.ceil)
    floor = staticmethod(math.floor)
    least = staticmethod(min)
    most = staticmethod(max)

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        """``yes`` where the condition holds, else ``no``."""
        return yes if condition else no


class Many:
    """The same functions, element-wise on numpy arrays."""

    def __init__(self) -> None:
        import numpy as np

        self.log2: Any = np.log2
        self.ceil: Any = np.ceil
        self.floor: Any = np.floor
        self.least: Any = np.minimum
        self.most: Any = np.maximum
        self.where: Any = np.where

    @staticmethod
    def whole(value: Any) -> Any:
        """Values without their fractions, as integers."""
        import numpy as np

        return np.asarray(value).astype(np.int64)

    @staticmethod
    def taken(table: Any, index: Any) -> Any:
        """Entries of a table."""
        import numpy as np

        return np.asarray(table)[index]


class Machine:
    """The constants of one device that formulas read, with stand-ins for what its specification leaves out.

    Attributes:
        spec: the device.
        rates: FLOP/s by rate format, filled on demand.
        paid: the same as far as the power limit pays for it.
        bandwidth: main memory, bytes/s, or 0 where unknown.
        base_link: bytes/s one way between peers; of a device without a known one, its PCIe, or a stand-in.
        units: cores or multiprocessors over which tiles are spread; 1 on a CPU, whose scheduling is not tiled so.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.rates: dict[str, float] = {}
        self.paid: dict[str, float] = {}
        self.bandwidth = spec.bandwidth or 0.0
        self.cache = spec.l2_bytes or 0.0
        self.base_link = spec.link_speed("fabric") or spec.pcie_bandwidth or 1e9
        self.tiled = spec.kind != "cpu"
        self.units = float(spec.sm_count or 1) if self.tiled else 1.0

    def rate(self, fmt: str) -> float:
        """FLOP/s for a rate format; see :meth:`wattline.device.DeviceSpec.rate` for what it raises."""
        if fmt not in self.rates:
            self.rates[fmt], executed = self.spec.rate(fmt)
            self.paid[fmt] = min(powered_rate(self.spec, executed), 1e30)
        return self.rates[fmt]

    def powered(self, fmt: str) -> float:
        """FLOP/s that the power limit pays for; see :func:`wattline.predictors.priors.powered_rate`."""
        self.rate(fmt)
        return self.paid[fmt]


@dataclass
class Terms:
    """Seconds that each resource needs for some work, and the bound that follows.

    Attributes:
        compute: FLOPs over the rate.
        powered: FLOPs over the rate that the power limit pays for.
        memory: all compulsory bytes over the bandwidth of main memory.
        link: bytes over the link.
        bound: the least time that physics allows: their maximum, less what a warm cache may have served.
        bound_compute: the part of ``compute`` that the bound counts: without what clever algorithms save.
        bound_memory: the part of ``memory`` that the bound counts.
        moved: compulsory bytes.
        rounds: message rounds of a collective.
        bound_link: the part of ``link`` that the bound counts: over links whose speed is known, by the datasheet or
            by a fit to measured transfers.
        link_bytes: bytes by link.
        details: figures of the work model that explain and bound nothing.
    """

    compute: Any
    powered: Any
    memory: Any
    link: Any
    bound: Any
    bound_compute: Any
    bound_memory: Any
    moved: Any
    rounds: Any
    bound_link: Any
    link_bytes: Mapping[str, Any]
    details: Mapping[str, Any]


def terms_of(model: WorkModel, params: Mapping[str, Any], machine: Machine, warm: bool, xp: Any) -> Terms:
    """The time that each resource needs at least.

    Args:
        model: the work model of the operation.
        params: its parameters, numbers or arrays of one shape.
        machine: the device.
        warm: inputs may lie in the last-level cache: then only the bytes that cannot fit in it must come from main
            memory. (:func:`wattline.work.bound` with ``cached=True`` leaves them all out; a footprint beyond the
            cache is bounded here by what exceeds it.)
        xp: ``ONE`` or ``MANY``.

    Raises:
        UnsupportedError: the device has no rate for a format of this work.
        ParamError: the work model needs a parameter that is not given.
    """
    try:
        work = model(params)
    except KeyError as error:
        name = error.args[0]
        if name in params:
            raise  # a word that the model does not know, or a slip in it
        raise ParamError(f"parameter {name!r} is missing", todo=f"give {name}=...") from None
    compute: Any = 0.0
    powered: Any = 0.0
    for fmt, count in work.flops.items():
        compute = compute + count / machine.rate(fmt)
        powered = powered + count / machine.powered(fmt)
    bound_compute: Any = compute
    if work.fewest:
        bound_compute = 0.0
        for fmt, count in work.needed.items():
            bound_compute = bound_compute + count / machine.rate(fmt)
    moved: Any = work.bytes_read.get("device", 0.0) + work.bytes_written.get("device", 0.0)
    memory: Any = 0.0
    bound_memory: Any = 0.0
    if machine.bandwidth:
        memory = moved / machine.bandwidth
        bound_memory = xp.most(moved - machine.cache, 0.0) / machine.bandwidth if warm else memory
    link: Any = 0.0
    bound_link: Any = 0.0
    for name, count in work.link_bytes.items():
        known = machine.spec.link_speed(name)
        link = link + count / (known or machine.base_link)
        if known:
            bound_link = bound_link + count / known
    bound = xp.most(xp.most(bound_compute, bound_memory), bound_link)
    rounds = sum(work.messages.values()) if work.messages else 0.0
    return Terms(
        compute, powered, memory, link, bound, bound_compute, bound_memory, moved, rounds, bound_link, work.link_bytes,
        work.details,
    )  # fmt: skip


ONE = One()
_many: list[Many] = []


def many() -> Many:
    """The array namespace; made on first use, so that importing this module loads no numpy."""
    if not _many:
        _many.append(Many())
    return _many[0]
