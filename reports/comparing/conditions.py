"""What differs between the machines, libraries and settings of two sides, and what that means for their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wattline.reports.comparing.reading import Side, SideCase, same_work
from wattline.reports.context import flatten

MACHINE, CAUTION, NOTE = "machine", "caution", "note"
"""Weight of a difference: another machine; a condition that moves figures by itself; what may be under comparison."""

_CAUTION = (
    "torch.threads", "torch.interop_threads", "torch.float32_matmul_precision", "torch.cpu_capability", "limits.",
    "variables.", "preloaded", "memory.transparent_huge_pages", "cpu.governor", "cpu.turbo", "cpu.max_hz", "cpu.min_hz",
    "cpu.smt", "cpu.logical", "settings.", "timer.", "ranks", "energy.source", "energy.scope",
)  # fmt: skip
_CAUTION_WORDS = ("power_limit", "clock_hz", "persistence", "mig", "ecc")
_SILENT = (
    "taken_at", "load.", "schema", "cpu.features", "cpu.caches", "reason", "nvml.reason", "timer.overhead_s",
    "timer.resolution_s",
)  # fmt: skip
_SETTINGS_OF_LENGTH = ("settings.deadline_s", "settings.max_call_s")
FP32 = ("fp32", "tf32")


@dataclass(frozen=True)
class Difference:
    """One condition in which two sides differ.

    Attributes:
        name: dotted name, e.g. ``"libraries.torch"``.
        a, b: its values; empty where a side does not have it.
        weight: :data:`MACHINE`, :data:`CAUTION` or :data:`NOTE`.
    """

    name: str
    a: str
    b: str
    weight: str


def differences(a: Side, b: Side) -> list[Difference]:
    """What differs, weightiest first. Of several runs on a side, every value that was met counts."""
    left, right = _facts(a), _facts(b)
    found = []
    for name in dict.fromkeys([*left, *right]):
        one, other = left.get(name, ""), right.get(name, "")
        if one != other and (weight := _weight(name)):
            found.append(Difference(name, one, other, weight))
    order = (MACHINE, CAUTION, NOTE)
    return sorted(found, key=lambda d: order.index(d.weight))


def same_machine(a: Side, b: Side) -> bool:
    """Whether both sides name the same device; a side that names none is taken to be of the same."""
    return a.device_id == b.device_id or not (a.device_id and b.device_id)


def _facts(side: Side) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for run in side.runs:
        for name, text in _leaves(run.manifest):
            values.setdefault(name, {})[text] = None
    return {name: " or ".join(texts) for name, texts in values.items()}


def _leaves(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def table(name: str) -> Mapping[str, Any]:
        found = manifest.get(name)
        return found if isinstance(found, Mapping) else {}

    device, plan = table("device"), table("plan")
    for name in ("id", "name", "memory_bytes", "sm_count", "tdp_w"):
        if device.get(name):
            yield f"device.{name}", str(device[name])
    for name, text in flatten(table("environment")):
        if text not in ("-", ""):
            yield name, _rounded(name, text)
    yield from (("preset", str(plan["preset"])) for _ in range(1) if plan.get("preset"))
    if plan.get("ranks"):
        yield from flatten(plan["ranks"], "ranks")
    if isinstance(plan.get("settings"), Mapping):
        yield from flatten(plan["settings"], "settings")
    yield from flatten({k: v for k, v in table("timer").items() if k == "name"}, "timer")
    yield from flatten({k: v for k, v in table("energy").items() if k in ("source", "scope")}, "energy")


def _rounded(name: str, text: str) -> str:
    """Kernels reserve a little more or less memory at each start."""
    if name.endswith("total_bytes") and text.isdigit():
        return f"{round(int(text) / 2**30)} GiB"
    return text


def _weight(name: str) -> str:
    if name.startswith(_SILENT) or name.endswith(".reason") or name in _SETTINGS_OF_LENGTH:
        return ""
    if name.startswith("device."):
        return MACHINE
    if name.startswith(_CAUTION) or any(word in name for word in _CAUTION_WORDS):
        return CAUTION
    return NOTE


@dataclass(frozen=True)
class Conditions:
    """The conditions of both sides that decide over single cases.

    Attributes:
        matmul_precision: how torch computes fp32 products on each side.
    """

    matmul_precision: tuple[str, str]

    @classmethod
    def of(cls, a: Side, b: Side) -> Conditions:
        """Those of two sides."""
        words = [_facts(side).get("torch.float32_matmul_precision", "") for side in (a, b)]
        return cls((words[0], words[1]))

    def not_comparable(self, a: SideCase, b: SideCase) -> str:
        """Why the times of a case are no times of the same thing; empty where they are."""
        if a.timer != b.timer and a.timer and b.timer:
            return f"another clock was read: {a.timer} against {b.timer}"
        if not same_work(a.work, b.work):
            return "the operation does other work: its operations or bytes were counted differently"
        one, other = self.matmul_precision
        if one != other and one and other and a.case.dtype in FP32:
            return f"torch computes fp32 products in another precision: {one} against {other}"
        return ""

    @staticmethod
    def energy_not_comparable(a: SideCase, b: SideCase) -> str:
        """Why the joules of a case are not of the same scope; empty where they are."""
        if a.sensor != b.sensor:
            return f"another sensor was read: {a.sensor} against {b.sensor}"
        return ""
