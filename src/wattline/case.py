"""Case: what is measured, in one frozen, hashable value with a stable key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from wattline.errors import SchemaError, unknown_name
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
    """

    op: str
    impl: str
    params: Mapping[str, Value] = field(default_factory=dict)
    regime: str = "cold"
    data: str = "uniform"

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise unknown_name("regime", self.regime, REGIMES)
        if self.data not in FILLS:
            raise unknown_name("data fill", self.data, FILLS)
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that name this case, the same on every machine and in every version."""
        return hashlib.sha256(_CANONICAL.encode(self.to_dict()).encode()).hexdigest()[:16]

    @property
    def dtype(self) -> str | None:
        """The number format, where the operation has one."""
        value = self.params.get("dtype")
        return None if value is None else str(value)

    def label(self) -> str:
        """One line for people: ``gemm.dense torch m=512 n=512 k=512 fp32 cold``.

        What says nothing is left out: the words ``default`` and ``same``, and a batch of one.
        """
        unsaid = {("batch", 1)}
        shown = " ".join(
            f"{k}={v}"
            for k, v in self.params.items()
            if k != "dtype" and v not in ("default", "same") and (k, v) not in unsaid
        )
        words = [self.op, self.impl, shown, self.dtype or "", self.regime]
        if self.data != "uniform":
            words.append(self.data)
        return " ".join(word for word in words if word)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "op": self.op,
            "impl": self.impl,
            "params": dict(self.params),
            "regime": self.regime,
            "data": self.data,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """The case that :meth:`to_dict` wrote.

        Raises:
            SchemaError: a field is missing.
        """
        try:
            return cls(data["op"], data["impl"], data["params"], data["regime"], data["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError("not a case", why=f"missing or wrong field: {error}") from None

    def __eq__(self, other: object) -> bool:
        # By key, as the hash: 1, 1.0 and True are equal to Python, yet different parameters.
        return isinstance(other, Case) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Case, (self.op, self.impl, dict(self.params), self.regime, self.data))
