"""Registries of workloads and implementations.

Built-in suites are modules named here; third parties add theirs with an entry point of the group
``wattline.suites`` that names a module, whose import runs its registrations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points

from wattline.errors import UsageError, WattlineError, unknown_name
from wattline.suites.workload import Build, Entry, Implementation, Requirement, Workload
from wattline.workmodels import known_ops, register

ENTRY_POINT_GROUP = "wattline.suites"
_BUILT_IN: dict[str, tuple[str, ...]] = {
    "gemm": (
        "wattline.suites.gemm.dense",
        "wattline.suites.gemm.dense_compiled",
        "wattline.suites.gemm.tiled",
        "wattline.suites.gemm.moe",
        "wattline.suites.gemm.lowrank",
        "wattline.suites.gemm.monarch",
        "wattline.suites.gemm.sparse",
        "wattline.suites.gemm.quant.quantized",
        "wattline.suites.conv.conv2d",
        "wattline.suites.conv.long",
        "wattline.suites.fusion_chain",
    ),
    "collectives": (
        "wattline.suites.collectives.ops",
        "wattline.suites.collectives.matrix",
        "wattline.suites.collectives.algorithm",
        "wattline.suites.collectives.overlap",
        "wattline.suites.collectives.compressed",
        "wattline.suites.collectives.strided",
        "wattline.suites.collectives.moe",
        "wattline.suites.collectives.stragglers",
    ),
    "attention": (
        "wattline.suites.attention.prefill",
        "wattline.suites.attention.hybrid",
        "wattline.suites.attention.sparse",
        "wattline.suites.attention.linear",
        "wattline.suites.attention.merge",
        "wattline.suites.attention.decode",
        "wattline.suites.attention.kvquant",
        "wattline.suites.attention.mla",
        "wattline.suites.rowwise.softmax",
        "wattline.suites.rowwise.norms",
        "wattline.suites.rowwise.elementwise",
        "wattline.suites.rowwise.rope",
    ),
    "host": ("wattline.suites.host.stream",),
    "launch": ("wattline.suites.launch.overhead", "wattline.suites.launch.model"),
    "memory": ("wattline.suites.memory.bandwidth", "wattline.suites.memory.latency"),
    "offload": (
        "wattline.suites.offload.copies",
        "wattline.suites.offload.rows",
        "wattline.suites.offload.pinned",
        "wattline.suites.offload.pipeline",
        "wattline.suites.offload.optimizer",
    ),
    "storage": ("wattline.suites.storage.moves", "wattline.suites.storage.checkpoint"),
}
"""Modules by suite. A suite holds the operations that its modules register, whatever their names begin with."""
_entries: dict[str, Entry] = {}
_members: dict[str, list[str]] = {}
_loaded = False
_broken: dict[str, str] = {}


def workload(
    op: str, *, impl: str = "torch", requires: Sequence[Requirement] = ()
) -> Callable[[type[Workload]], type[Workload]]:
    """Register a workload class under ``op``; its ``build`` becomes the implementation ``impl``.

    Raises:
        UsageError: ``op`` is registered already, or is not ``suite.name``.
    """

    def decorate(cls: type[Workload]) -> type[Workload]:
        if op in _entries:
            raise UsageError(f"the op {op!r} is registered twice", why=f"by {type(_entries[op].workload)} and {cls}")
        built_in = next((suite for suite, modules in _BUILT_IN.items() if cls.__module__ in modules), "")
        if "." not in op and not built_in:
            raise UsageError(f"the op {op!r} has no suite", todo='name it "suite.name"')
        cls.op = op
        instance = cls()
        _entries[op] = Entry(instance)
        for suite in dict.fromkeys((built_in, op.split(".", maxsplit=1)[0] if "." in op else "")):
            if suite:
                _members.setdefault(suite, []).append(op)
        if op not in known_ops():
            register(op, instance.work)
        doc = (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
        _entries[op].implementations[impl] = Implementation(op, impl, instance.build, tuple(requires), doc)
        return cls

    return decorate


def implementation(op: str, name: str, *, requires: Sequence[Requirement] = ()) -> Callable[[Build], Build]:
    """Register a function ``build(p, ctx) -> Kernel`` as another implementation of ``op``.

    Raises:
        UsageError: that implementation is registered already.
        UnknownNameError: no such operation.
    """

    def decorate(build: Build) -> Build:
        if op not in _entries:
            raise unknown_name("op", op, _entries)
        if name in _entries[op].implementations:
            raise UsageError(f"the implementation {name!r} of {op} is registered twice")
        doc = (build.__doc__ or "").strip().splitlines()[0] if build.__doc__ else ""
        _entries[op].implementations[name] = Implementation(op, name, build, tuple(requires), doc)
        return build

    return decorate


def entries() -> Mapping[str, Entry]:
    """All registered workloads by op, built-in and third-party ones."""
    global _loaded  # noqa: PLW0603 - the registry is filled once per process
    if not _loaded:
        for modules in _BUILT_IN.values():
            for module in modules:
                import_module(module)
        _loaded = True
        for point in entry_points(group=ENTRY_POINT_GROUP):
            # A broken plug-in must not take the suite down; `doctor` and `list` show why it is missing.
            try:
                point.load()
            except (ImportError, AttributeError, WattlineError) as error:
                _broken[point.name] = f"{type(error).__name__}: {error}"
    return _entries


def broken_plugins() -> Mapping[str, str]:
    """Entry points that could not be loaded, with the reason."""
    entries()
    return _broken


def get(op: str) -> Entry:
    """The entry of an operation.

    Raises:
        UnknownNameError: no such operation.
    """
    found = entries()
    if op not in found:
        raise unknown_name("op", op, found, listing="wattline list")
    return found[op]


def get_implementation(op: str, name: str) -> Implementation:
    """An implementation of an operation.

    Raises:
        UnknownNameError: no such operation or implementation.
    """
    entry = get(op)
    if name not in entry.implementations:
        raise unknown_name(
            f"implementation of {op}", name, entry.implementations, listing=f"wattline list {op}"
        )
    return entry.implementations[name]


def suite_names() -> list[str]:
    """The names of suites."""
    entries()
    return list(_members)


def members(suite: str) -> list[str]:
    """The ops of a suite.

    Raises:
        UnknownNameError: no such suite.
    """
    if suite not in suite_names():
        raise unknown_name("suite", suite, _members, listing="wattline list")
    return list(_members[suite])


def suite_of(op: str) -> str:
    """The suite that holds an operation: the built-in one that registers it, else what its name begins with."""
    entries()
    return next((suite for suite in _BUILT_IN if op in _members.get(suite, ())), op.split(".", maxsplit=1)[0])


def select(names: Sequence[str]) -> list[str]:
    """The ops that names mean: ops themselves (``gemm.dense``) or suites; none means all.

    A suite's name is what the names of its ops begin with (``gemm``, ``norm``), or that of a built-in suite, which
    holds what belongs together whatever its name (``attention`` holds ``norm.rmsnorm`` too).

    Raises:
        UnknownNameError: a name that is neither.
    """
    found = entries()
    if not names:
        return list(found)
    suites = suite_names()
    chosen: list[str] = []
    for name in names:
        if name in found:
            chosen.append(name)
        elif name in suites:
            chosen.extend(_members[name])
        else:
            raise unknown_name("op or suite", name, [*found, *suites], listing="wattline list")
    return list(dict.fromkeys(chosen))
