"""Case: what is measured, in one frozen, hashable value with a stable key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from wattline.errors import ParamError, SchemaError, unknown_name
from wattline.params import Value

REGIMES: dict[str, str] = {
    "cold": "inputs rotate through buffers of together at least twice the last-level cache",
    "hot": "back to back on one buffer",
    "graph": "a captured graph is replayed, launch cost removed",
    "eager": "one call at a time as a Python caller sees it, launch and allocation included",
}
"""The named measurement regimes; figures of different regimes never share a column."""

FILLS: dict[str, str] = {
    "uniform": "random uniform in [-1, 1]",
    "normal": "random normal, mean 0, standard deviation 1",
    "zeros": "all zeros (speeds some devices up: for comparison only)",
    "integers": "random whole numbers from -4 to 4 (exact in every format)",
    "sparse": "uniform with half the elements zero",
}
"""The data that inputs are filled with."""

CAPS = ("power_limit_w", "clock_hz")
"""What a device may be held to while a case is measured: conditions like regime and data, but set on the device."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, eq=False)
class Case:
    """One configuration of one operation under named conditions.

    Attributes:
        op: the operation, e.g. ``"gemm.dense"``.
        impl: the implementation, e.g. ``"torch"``.
        params: its typed parameters, complete (defaults filled in); read-only.
        regime: one of :data:`REGIMES`.
        data: one of :data:`FILLS`.
        power_limit_w: power limit that the device is held to meanwhile; ``None``: left as it is found.
        clock_hz: clock that its multiprocessors are locked to; ``None``: left as it is found.
    """

    op: str
    impl: str
    params: Mapping[str, Value] = field(default_factory=dict)
    regime: str = "cold"
    data: str = "uniform"
    power_limit_w: float | None = None
    clock_hz: float | None = None

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise unknown_name("regime", self.regime, REGIMES, listing="wattline list regimes")
        if self.data not in FILLS:
            raise unknown_name("data fill", self.data, FILLS, listing="wattline list data")
        for name in CAPS:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < float("inf")):
                raise ParamError(f"{name} must be a number above zero, not {value!r}")
            if value is not None:
                object.__setattr__(self, name, float(value))  # 500 and 500.0 are one limit, and have one key
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that name this case, the same on every machine and in every version."""
        return hashlib.sha256(_CANONICAL.encode(self.to_dict()).encode()).hexdigest()[:16]

    @property
    def caps(self) -> dict[str, float]:
        """The caps that are asked for, by the names of :data:`CAPS`; empty without any."""
        return {name: value for name in CAPS if (value := getattr(self, name)) is not None}

    @property
    def capped(self) -> bool:
        """Whether the device is to be held to a power limit or a clock."""
        return bool(self.caps)

    @property
    def dtype(self) -> str | None:
        """The number format, where the operation has one."""
        value = self.params.get("dtype")
        return None if value is None else str(value)

    def label(self) -> str:
        """One line for people: ``gemm.dense torch m=512 n=512 k=512 fp32 cold``.

        What says nothing is left out: the words ``default`` and ``same``, a batch of one, a NUMA node of -1.
        """
        unsaid = {("batch", 1), ("node", -1), ("cpu_node", -1)}
        shown = " ".join(
            f"{k}={v}"
            for k, v in self.params.items()
            if k != "dtype" and v not in ("default", "same") and (k, v) not in unsaid
        )
        words = [self.op, self.impl, shown, self.dtype or "", self.regime]
        if self.data != "uniform":
            words.append(self.data)
        if self.power_limit_w is not None:
            words.append(f"at {self.power_limit_w:g} W")
        if self.clock_hz is not None:
            words.append(f"at {self.clock_hz / 1e6:g} MHz")
        return " ".join(word for word in words if word)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; caps that are not set are left out."""
        return {
            "op": self.op,
            "impl": self.impl,
            "params": dict(self.params),
            "regime": self.regime,
            "data": self.data,
            **self.caps,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """The case that :meth:`to_dict` wrote.

        Raises:
            SchemaError: a field is missing.
        """
        try:
            caps = (data.get("power_limit_w"), data.get("clock_hz"))
            return cls(data["op"], data["impl"], data["params"], data["regime"], data["data"], *caps)
        except (KeyError, TypeError, ValueError, ParamError) as error:
            raise SchemaError("not a case", why=f"missing or wrong field: {error}") from None

    def __eq__(self, other: object) -> bool:
        # By key, as the hash: 1, 1.0 and True are equal to Python, yet different parameters.
        return isinstance(other, Case) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        words = (self.op, self.impl, dict(self.params), self.regime, self.data)
        return (Case, (*words, self.power_limit_w, self.clock_hz))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
