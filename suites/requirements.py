"""Capability floors: what implementations need, each with the reason that a record carries when it is unmet."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wattline.reasons import Reason
from wattline.suites.workload import Machine, ParamValues, Requirement


def accelerator() -> Requirement:
    """Any accelerator that torch drives."""

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        if machine.kind != "cpu":
            return None
        return Reason("no_accelerator", "it needs an accelerator, and torch sees none here")

    return Requirement("an accelerator", unmet)


def cuda(sm: int = 0) -> Requirement:
    """An NVIDIA GPU of at least compute capability ``sm`` (90 for 9.0)."""
    text = f"an NVIDIA GPU of compute capability {sm / 10:.1f} or newer" if sm else "an NVIDIA GPU"

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        if machine.kind != "cuda" or machine.hip:
            return Reason("no_cuda", f"it needs {text}; this device is of type {machine.kind}")
        if machine.sm < sm:
            return Reason("old_device", f"it needs {text}; this one has {machine.sm / 10:.1f}")
        return None

    return Requirement(text, unmet)


def cuda_api() -> Requirement:
    """A GPU of NVIDIA or AMD, which torch drives through ``torch.cuda``."""

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        if machine.kind == "cuda":
            return None
        return Reason("no_cuda", f"it needs a GPU of NVIDIA or AMD; this device is of type {machine.kind}")

    return Requirement("a GPU of NVIDIA or AMD", unmet)


def module(name: str) -> Requirement:
    """An importable Python module."""

    def unmet(_: ParamValues, __: Machine) -> Reason | None:
        from importlib.util import find_spec

        if find_spec(name) is None:
            return Reason("missing_library", f"the Python package {name} is not installed")
        return None

    return Requirement(f"the package {name}", unmet)


def triton() -> Requirement:
    """Triton, and a device it compiles for. ``TRITON_INTERPRET=1`` runs its kernels on a CPU, for checks: thousands of
    times slower than compiled ones, so no plan measures them unless that is set."""

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        from importlib.util import find_spec
        from os import environ

        if find_spec("triton") is None:
            return Reason("missing_library", "the Python package triton is not installed")
        if machine.kind == "cpu" and environ.get("TRITON_INTERPRET") != "1":
            return Reason("no_accelerator", "Triton compiles for GPUs, and this device is a CPU")
        return None

    return Requirement("the package triton and a GPU", unmet)


def torch_at_least(major: int, minor: int) -> Requirement:
    """A version of torch."""

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        if machine.torch_version >= (major, minor):
            return None
        found = ".".join(map(str, machine.torch_version))
        return Reason("old_torch", f"it needs torch {major}.{minor} or newer; this is {found}")

    return Requirement(f"torch >= {major}.{minor}", unmet)


def when(condition: Callable[[ParamValues], bool], requirement: Requirement, text: str) -> Requirement:
    """``requirement``, but only for parameters that meet ``condition`` (``text`` says which)."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        return requirement.unmet(p, machine) if condition(p) else None

    return Requirement(f"{text}: {requirement.text}", unmet)


def never(condition: Callable[[ParamValues, Machine], bool], code: str, message: str) -> Requirement:
    """Refuses parameters that meet ``condition`` with a fixed reason."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        return Reason(code, message) if condition(p, machine) else None

    return Requirement(f"not where {message}", unmet)


def any_of(requirements: Iterable[Requirement]) -> Requirement:
    """At least one of several; the reason names the first that failed."""
    options = tuple(requirements)

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        reasons = [r.unmet(p, machine) for r in options]
        return None if any(reason is None for reason in reasons) else reasons[0]

    return Requirement(" or ".join(r.text for r in options), unmet)
