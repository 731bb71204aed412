"""Cost estimates: how long one call of a case will take, before anybody waits for it.

Some formats are a thousand times slower than others on the same machine (half precision on many CPUs). The first
case of a kind is preceded by a scout, a small case of the same kind; where its speed says that the real one is out
of reach, larger scouts follow until one is large enough to be believed and agrees with the one before, because small
cases understate the speed of large ones, and those that waited for a busy processor most of all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

from wattline.case import Case
from wattline.params import Value
from wattline.suites.workload import Workload
from wattline.work import Work

BELIEVABLE_S = 0.02
"""A scout that took this long may run at the speed of larger cases: it does when it agrees with a smaller one."""
CERTAIN_S = 0.1
"""A scout that took this long is believed alone: nobody waits that long for a processor three times in a row."""
STEADY = 2.0
"""How many times faster than a scout the next larger one may run for the two to agree."""
_FIRST = 128


@dataclass(frozen=True)
class Estimate:
    """An estimate of one call.

    Attributes:
        call_s: seconds.
        basis: what it was scaled from, in words.
    """

    call_s: float
    basis: str


class CostModel:
    """Remembers what calls took, by kind of case (operation, implementation, number format, caps)."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, list[tuple[float, float, str]]] = {}

    @staticmethod
    def _kind(case: Case) -> Hashable:
        return case.op, case.impl, case.dtype, *case.caps.items()

    def learn(self, case: Case, work: float, call_s: float) -> None:
        """Remember that a case of this much work took ``call_s`` a call."""
        shown = " ".join(f"{k}={v}" for k, v in case.params.items() if isinstance(v, int) and k in ("m", "n", "k"))
        self._seen.setdefault(self._kind(case), []).append((work, call_s, shown or case.label()))

    def estimate(self, case: Case, work: float) -> Estimate | None:
        """Seconds of one call, scaled from the seen case of the nearest work; ``None`` when none was seen."""
        seen = self._seen.get(self._kind(case))
        if not seen:
            return None
        near_work, near_s, shown = min(seen, key=lambda entry: abs(entry[0] - work))
        # Less work is not assumed to be quicker than in proportion, nor slower than the case seen.
        scaled = near_s * (work / near_work) if near_work else near_s
        return Estimate(scaled, f"{near_s:.3g} s measured at {shown}")

    def affordable(
        self,
        case: Case,
        workload: Workload,
        limit_s: float,
        run: Callable[[Mapping[str, Value]], float],
    ) -> Estimate | None:
        """The estimate of a case that is out of reach, or ``None`` when it may be run.

        Args:
            case: the case.
            workload: its workload.
            limit_s: longest call that is accepted.
            run: runs one call with other parameters and returns its seconds.
        """
        whole = amount(workload.work(case.params))
        size = _FIRST
        known = self.estimate(case, whole)
        if known is not None and known.call_s <= limit_s:
            return None
        rate_before: float | None = None
        while True:
            smaller = workload.scout(case.params, size)
            if smaller is None:
                return None
            scout = replace(case, params=smaller)
            took, done = run(smaller), amount(workload.work(smaller))
            self.learn(scout, done, took)
            known = self.estimate(case, whole)
            if known is None or known.call_s <= limit_s:
                return None
            # A small scout that waited for a processor (others use the machine) takes as long as a slow one; a
            # larger one tells them apart: its rate rises in the first case and stays in the second.
            rate = done / took if took else float("inf")
            confirmed = rate_before is not None and rate <= STEADY * rate_before
            if took >= CERTAIN_S or (took >= BELIEVABLE_S and confirmed):
                return known
            rate_before = rate
            size *= 2


def amount(work: Work) -> float:
    """One number for the work of a case: FLOPs, or the bytes of all levels and links where nothing is computed."""
    return work.total_flops or work.total_bytes
