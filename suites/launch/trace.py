"""What a trace of torch's profiler says of launches: how long kernels wait to start, who holds up whom, what to fuse.

Definitions of SKIP (Vellaisamy et al., "Characterizing and Optimizing LLM Inference Workloads on CPU-GPU Coupled
Architectures", ISPASS 2025, arXiv:2504.11750). On a CPU the operators that do the work take the place of kernels, so
that the same report shows what the dispatch of operators costs.

The trace is the profiler's own Chrome trace: files that others have written can be read as well.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattline.errors import SchemaError, UnsupportedError, storage_error

KERNELS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
LAUNCHERS = frozenset({"cuda_runtime", "cuda_driver", "xpu_runtime", "privateuse1_runtime"})
OPERATORS = frozenset({"cpu_op"})
HOST_BOUND, DEVICE_BOUND = 0.5, 0.1
"""Idle shares of the time above and below which the host, or the device, is what bounds."""
LONGEST_CHAIN = 8
_US = 1e-6
NO_WORK = frozenset(
    f"aten::{name}"
    for name in (
        "alias", "as_strided", "as_strided_", "broadcast_tensors", "chunk", "contiguous", "detach", "detach_", "empty",
        "empty_like", "empty_strided", "expand", "expand_as", "flatten", "lift_fresh", "movedim", "narrow", "new_empty",
        "new_empty_strided", "numpy_T", "permute", "reshape", "resize_", "resolve_conj", "resolve_neg", "result_type",
        "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "squeeze_", "swapaxes", "t", "transpose",
        "transpose_", "unbind", "unflatten", "unfold", "unsqueeze", "unsqueeze_", "view", "view_as", "_reshape_alias",
        "_unsafe_view",
    )
)
"""Operators that give a tensor another shape, or room, and touch none of its elements. (A reshape that must copy calls
an operator that copies, which counts.)"""


@dataclass(frozen=True)
class Chain:
    """Kernels that follow each other again and again.

    Attributes:
        names: of the kernels.
        count: how often they do, occurrences that overlap counted once.
        proximity: how often the first kernel is followed by the rest (1: always): SKIP's proximity score.
        saved_s: idle time between them that one kernel in their place would not have.
    """

    names: tuple[str, ...]
    count: int
    proximity: float
    saved_s: float


@dataclass(frozen=True)
class TraceReport:
    """What a trace says.

    Attributes:
        kind: ``"device"``, or ``"cpu"`` where operators stand for kernels.
        kernels: how many ran.
        span_s: from the first operator's begin to the last kernel's end (SKIP's inference latency).
        busy_s: in which at least one kernel ran.
        kernel_s: mean duration of a kernel.
        tklqt_s: total kernel launch and queueing time: from each launch's begin to its kernel's begin, all together. On
            a CPU: from the outermost operator's begin to that of the operator inside that does the work.
        queued_s: the part in which the kernel before it on its stream still ran.
        gaps_s: idle time between consecutive kernels, all together.
        idle_share: of the span without any kernel.
        verdict: ``"host-bound"``, ``"device-bound"`` or ``"mixed"``.
        fusion: chains of kernels ranked by the time that fusing them would save.
    """

    kind: str
    kernels: int
    span_s: float
    busy_s: float
    kernel_s: float
    tklqt_s: float
    queued_s: float
    gaps_s: float
    idle_share: float
    verdict: str
    fusion: tuple[Chain, ...]

    def facts(self, most: int = 3) -> dict[str, Any]:
        """For a record: plain numbers and words."""
        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("kernels", "span_s", "busy_s", "kernel_s", "tklqt_s", "queued_s", "gaps_s", "idle_share")
        }
        found["verdict"] = self.verdict
        found["fusion"] = [
            f"{' + '.join(c.names)}: {c.count} times, proximity {c.proximity:.2f}, saves {c.saved_s * 1e6:.3g} us"
            for c in self.fusion[:most]
        ]
        return found


def read_trace(path: str | Path) -> list[dict[str, Any]]:
    """The events of a Chrome trace.

    Raises:
        StorageError: the file cannot be read.
        SchemaError: it is no such trace.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise storage_error(error, "reading", path) from None
    except ValueError as error:
        raise SchemaError(f"{path} is no trace", why=f"it is not JSON: {error}") from None
    events = found.get("traceEvents") if isinstance(found, dict) else found
    if not isinstance(events, list):
        raise SchemaError(f"{path} is no trace", why="it holds no traceEvents")
    return events


def analyse(events: Sequence[Mapping[str, Any]], *, longest: int = LONGEST_CHAIN, most: int = 10) -> TraceReport:
    """What the events of a trace say.

    Args:
        events: of the profiler's Chrome trace: ``ph``, ``cat``, ``name``, ``ts`` and ``dur`` in microseconds, ``tid``,
            and for launches and kernels ``args.correlation``.
        longest: kernels of the longest chain looked for.
        most: chains that are kept.

    Raises:
        UnsupportedError: it holds neither kernels nor operators.
    """
    complete = [e for e in events if e.get("ph") == "X" and "dur" in e and "ts" in e]
    kernels = [e for e in complete if str(e.get("cat", "")).lower() in KERNELS]
    operators = [e for e in complete if str(e.get("cat", "")).lower() in OPERATORS]
    if kernels:
        return _of_device(complete, kernels, operators, longest, most)
    if operators:
        return _of_cpu(operators, longest, most)
    raise UnsupportedError("the trace tells nothing of launches", why="no kernels and no operators", code="empty_trace")


def _times(events: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Begin and end in seconds, from the first event on: large timestamps would lose digits."""
    import numpy as np

    begin = np.array([float(e["ts"]) for e in events])
    return begin, begin + np.array([float(e["dur"]) for e in events])


def _covered(begin: Any, end: Any) -> float:
    """The length of the union of intervals."""
    import numpy as np

    if not len(begin):
        return 0.0
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    reach = np.maximum.accumulate(end)
    starts = np.concatenate(([begin[0]], np.maximum(begin[1:], reach[:-1])))
    return float(np.maximum(end - starts, 0.0).sum())


def _of_device(
    complete: Sequence[Mapping[str, Any]], kernels: Sequence[Mapping[str, Any]],
    operators: Sequence[Mapping[str, Any]], longest: int, most: int,
) -> TraceReport:  # fmt: skip
    import numpy as np

    launches: dict[Any, tuple[float, float]] = {}
    for event in complete:
        if str(event.get("cat", "")).lower() in LAUNCHERS:
            number = event.get("args", {}).get("correlation")
            if number is not None:
                launches[number] = (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
    kernels = sorted(kernels, key=lambda e: float(e["ts"]))
    begin, end = _times(kernels)
    # Graphs launch many kernels at once, and a trace may begin in the middle: those without a launch count no wait.
    missing = (float("nan"), float("nan"))
    pairs = np.array([launches.get(e.get("args", {}).get("correlation"), missing) for e in kernels])
    launched, returned = pairs[:, 0], pairs[:, 1]
    streams = np.array([hash((e.get("pid"), e.get("tid"))) for e in kernels])
    before = np.full(len(kernels), -np.inf)  # when the kernel before it on its stream ended
    for stream in np.unique(streams):
        where = np.flatnonzero(streams == stream)
        before[where[1:]] = np.maximum.accumulate(end[where])[:-1]
    waits = np.nan_to_num(np.maximum(begin - launched, 0.0))
    queued = np.nan_to_num(np.clip(np.minimum(before, begin) - returned, 0.0, None), neginf=0.0)
    first = min([float(begin[0])] + [float(e["ts"]) for e in operators] + list(launched[np.isfinite(launched)]))
    names = [str(e.get("name", "")) for e in kernels]
    return _report(
        "device", names, begin, end, first, float(waits.sum()), float(np.minimum(queued, waits).sum()), longest, most
    )


def _of_cpu(operators: Sequence[Mapping[str, Any]], longest: int, most: int) -> TraceReport:
    import numpy as np

    lanes: dict[Any, list[Mapping[str, Any]]] = {}
    for event in operators:
        lanes.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    found: list[tuple[float, float, str]] = []
    waits = 0.0
    for lane in lanes.values():
        ordered = sorted(lane, key=lambda e: (float(e["ts"]), -float(e["dur"])))
        begin, end = _times(ordered)
        last = -1
        for i, root in workers(begin, end, [str(e.get("name", "")) for e in ordered]):
            found.append((float(begin[i]), float(end[i]), str(ordered[i].get("name", ""))))
            if root != last:  # later ones in the same operator wait for work, not for dispatch alone
                waits += float(begin[i] - begin[root])
            last = root
    if not found:
        raise UnsupportedError(
            "the trace tells nothing of launches", why="no operator in it touches data", code="empty_trace"
        )
    found.sort()
    begin, end = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    first = min(float(e["ts"]) for e in operators)
    return _report("cpu", [f[2] for f in found], begin, end, first, waits, 0.0, longest, most)


def workers(begin: Any, end: Any, names: Sequence[str]) -> list[tuple[int, int]]:
    """The operators that do the work: from the outermost inwards the first that spends half of its time itself, rather
    than in operators that it calls; of those that touch no data, none: their time is that of whoever calls them.

    Args:
        begin, end: of operators of one thread, sorted by begin, longer ones first.
        names: of them.

    Returns:
        For each its index and that of the outermost operator around it.
    """
    own = [float(e - b) for b, e in zip(begin, end, strict=True)]
    parents: list[int] = []
    stack: list[int] = []
    for i, b in enumerate(begin):
        while stack and end[stack[-1]] <= b:
            stack.pop()
        parents.append(stack[-1] if stack else -1)
        # A view that the machine interrupts must not hide the product that asked for it.
        caller = next((j for j in reversed(stack) if names[j] not in NO_WORK), -1)
        if caller >= 0 and names[i] not in NO_WORK:
            own[caller] -= float(end[i] - b)
        stack.append(i)
    found: list[tuple[int, int]] = []
    inside = [False] * len(own)  # of an operator that does the work
    roots = list(range(len(own)))
    for i, parent in enumerate(parents):
        if parent >= 0:
            roots[i], inside[i] = roots[parent], inside[parent]
        if not inside[i] and names[i] not in NO_WORK and own[i] >= 0.5 * float(end[i] - begin[i]):
            inside[i] = True
            found.append((i, roots[i]))
    return found


def _report(  # noqa: PLR0917 - the parts of a report
    kind: str, names: Sequence[str], begin: Any, end: Any, first: float, waits: float, queued: float, longest: int,
    most: int,
) -> TraceReport:  # fmt: skip
    import numpy as np

    span = float(end.max()) - first
    busy = _covered(begin, end)
    gaps = np.maximum(begin[1:] - np.maximum.accumulate(end)[:-1], 0.0)
    idle = max(0.0, 1.0 - busy / span) if span > 0 else 0.0
    verdict = "host-bound" if idle > HOST_BOUND else "device-bound" if idle < DEVICE_BOUND else "mixed"
    return TraceReport(
        kind=kind,
        kernels=len(names),
        span_s=span * _US,
        busy_s=busy * _US,
        kernel_s=float((end - begin).mean()) * _US,
        tklqt_s=waits * _US,
        queued_s=queued * _US,
        gaps_s=float(gaps.sum()) * _US,
        idle_share=idle,
        verdict=verdict,
        fusion=chains(names, gaps * _US, longest=longest, most=most),
    )


def chains(names: Sequence[str], gaps: Any, *, longest: int = LONGEST_CHAIN, most: int = 10) -> tuple[Chain, ...]:
    """Chains that occur at least twice, ranked by the idle time within them.

    Args:
        names: of the kernels in the order of their begin, ``[n]``.
        gaps: seconds without work between each and the next, ``[n - 1]``.
        longest: kernels of the longest chain.
        most: how many to return.
    """
    import numpy as np

    words, ids = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    singles = np.bincount(ids, minlength=len(words))
    total = np.concatenate(([0.0], np.cumsum(gaps)))
    found: list[Chain] = []
    keys = ids.astype(np.int64)
    for length in range(2, min(longest, len(ids)) + 1):
        # A chain is a shorter one and one more kernel: numbered anew each time, so that the numbers stay small.
        paired = keys[:-1] * len(words) + ids[length - 1 :]
        _, begins, keys = np.unique(paired, return_index=True, return_inverse=True)
        counts = np.bincount(keys)
        within = np.bincount(keys, weights=total[length - 1 :] - total[: len(keys)])
        if counts.max() < 2:
            break
        for key in np.argsort(-within * (counts >= 2))[:most]:
            if counts[key] < 2:
                continue
            apart = _apart(np.flatnonzero(keys == key), length)
            if len(apart) < 2:
                continue
            at = int(begins[key])
            found.append(
                Chain(
                    names=tuple(str(words[i]) for i in ids[at : at + length]),
                    count=len(apart),
                    proximity=float(counts[key] / singles[ids[at]]),
                    saved_s=float((total[apart + length - 1] - total[apart]).sum()),
                )
            )
    return tuple(sorted(found, key=lambda c: (-c.saved_s, c.names))[:most])


def _apart(places: Any, length: int) -> Any:
    """Occurrences that do not overlap, the first ones kept."""
    import numpy as np

    kept, reach = [], -1
    for place in places.tolist():
        if place >= reach:
            kept.append(place)
            reach = place + length
    return np.array(kept, np.int64)


def trace_callable(
    call: Callable[[], object], *, warmup: int = 3, repeats: int = 3, most: int = 10
) -> TraceReport:
    """Run anything under torch's profiler and report on its launches.

    Args:
        call: what to run; on an accelerator it is waited for.
        warmup: calls before those that are traced: the first ones compile, load and allocate.
        repeats: calls traced, each by itself; the report is on the one of the shortest span, since whatever disturbs a
            call makes it longer.
        most: chains that are kept.
    """
    for _ in range(warmup):
        call()
    return min((analyse(_traced(call), most=most) for _ in range(repeats)), key=lambda report: report.span_s)


def _traced(call: Callable[[], object]) -> list[dict[str, Any]]:
    """The events of one call."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    accelerated = torch.accelerator.is_available()
    activities = [ProfilerActivity.CPU]
    if accelerated:
        kind = str(torch.accelerator.current_accelerator().type).upper()
        activities.append(getattr(ProfilerActivity, kind, ProfilerActivity.CUDA))
        torch.accelerator.synchronize()
    with profile(activities=activities) as watched:
        call()
        if accelerated:
            torch.accelerator.synchronize()
    with tempfile.TemporaryDirectory(prefix="wattline-trace-") as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        return read_trace(path)
