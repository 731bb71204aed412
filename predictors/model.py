"""The model of one family of operations: base, learned ratio, power, intervals and domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors.families import Family, family_of
from wattline.predictors.intervals import WIDEN, Intervals
from wattline.predictors.learners import Learner, Scaler
from wattline.predictors.parts import Correction, PowerPart, State, join, learner_from, learner_state, part_of
from wattline.predictors.physics import Machine, many
from wattline.predictors.power import Limits, utilisation, watts
from wattline.predictors.rows import Encoder, Grounds, Physics, Plan, kernel_of
from wattline.predictors.samples import Samples
from wattline.predictors.table import Block, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BOUNDS = ("nothing", "compute", "memory", "link")
"""What bounds a kernel, by code."""
_UNSEEN_WIDENS = 2.0
"""Factor on intervals for an implementation, format or option that no training row had."""
_DEVICE_WIDENS = 4.0
"""The same for a device, where the training data had too few devices to leave one out."""


@dataclass
class Encoded:
    """Rows of one family as numbers, in the order of ``rows``.

    Attributes:
        x: standardised, clipped features ``(n, d)``.
        raw: features as they are ``(n, d)``.
        outside: how far the parameters lie outside the trained ranges ``(n,)``, in octaves.
        base, bound: seconds ``(n,)``.
        by: code of what bounds ``(n,)``.
        compute, memory: seconds that each needs ``(n,)``.
        plans: plan and positions (within these arrays) of each block.
        rows: positions in the frame ``(n,)``.
    """

    x: Array
    raw: Array
    outside: Array
    base: Array
    bound: Array
    by: NDArray[np.int64]
    compute: Array
    memory: Array
    plans: list[tuple[Plan, slice]]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Which parts of a model answer for rows of one set of words.

    Attributes:
        name: class of the rows, for the intervals.
        fixes: corrections of their device.
        added: what these add to the learner, for the device and for the kernel alone.
        share: weight of the learner, beside the one for devices that nobody measured.
        spread: intervals of log time.
        widen: factor on them.
        power: the power part, or ``None``.
        power_widen: factor on its intervals.
        unseen: columns whose word no training row had.
        learned: whether device, implementation and format were all measured.
    """

    name: str
    fixes: tuple[Correction, ...]
    added: tuple[Learner, ...]
    share: float
    spread: Intervals
    widen: float
    power: PowerPart | None
    power_widen: float
    unseen: tuple[str, ...]
    learned: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for rows that are evaluated alike."""
        return (tuple(map(id, self.added)), self.share, id(self.spread))


@dataclass
class Answer:
    """Figures of rows: arrays ``(n,)``; ``half`` is half the width of the interval in log space."""

    time: Array
    time_half: Array
    power: Array
    power_half: Array
    energy_half: Array
    idle: Array
    cap: Array
    encoded: Encoded
    inside: NDArray[np.bool_]
    learned: NDArray[np.bool_]


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays one after the other; one alone as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _places(e: Encoded, members: Sequence[int]) -> slice | NDArray[np.int64]:
    """Where the rows of some blocks stand; all of them without an index, which would copy."""
    if len(members) == len(e.plans):
        return slice(None)
    return np.concatenate([np.arange(e.plans[i][1].start, e.plans[i][1].stop) for i in members])


class FamilyModel:
    """The fitted model of one family.

    Attributes:
        family: what it covers.
        encoder: from rows to features.
        scaler: of the features.
        learner: of log(time / base).
        abroad: of the same, for devices that nobody measured; ``None`` where there was one device alone.
        spread: intervals of log time.
        transfer: intervals for a device that no training row had, or ``None``.
        power: the power part, or ``None`` where no power was measured.
        corrections: what few rows of later devices taught, in order.
        seen: words of the training rows by column.
        facts: rows, groups, folds and held-out scores of the fit.
        samples: some of the training rows, for explanations.
    """

    def __init__(
        self,
        family: Family,
        encoder: Encoder,
        scaler: Scaler,
        learner: Learner,
        spread: Intervals,
        *,
        abroad: Learner | None,
        transfer: Intervals | None,
        power: PowerPart | None,
        seen: Mapping[str, Sequence[str]],
        facts: Mapping[str, Any],
        corrections: Sequence[Correction] = (),
        samples: Samples | None = None,
    ) -> None:
        self.family, self.encoder, self.scaler, self.learner = family, encoder, scaler, learner
        self.abroad = abroad
        self.spread, self.transfer, self.power = spread, transfer, power
        self.seen = {k: list(v) for k, v in seen.items()}
        self.facts = dict(facts)
        self.corrections = list(corrections)
        self.samples = samples or Samples.none(len(encoder.names))

    # -- rows to numbers ------------------------------------------------------------------------------------------

    def encode(
        self,
        blocks: Sequence[Block],
        machine: Callable[[str], Machine],
        grounds: Sequence[Grounds | None] | None = None,
    ) -> Encoded:
        """Encode the rows of blocks; ``grounds`` are those of each block, where they are known already."""
        plans, parts, physics = [], [], []
        start = 0
        for block, known in zip(blocks, grounds or [None] * len(blocks), strict=True):
            plan = self.encoder.plan(block.words, machine(block.words.device))
            found = self.encoder.physics(plan, block.numbers, many(), many=True, grounds=known)
            n = len(block.rows)
            plans.append((plan, slice(start, start + n)))
            parts.append(self.encoder.matrix(plan, found.features, n))
            physics.append((found, n))
            start += n
        return self.gathered(_joined(parts), plans, physics, _joined([b.rows for b in blocks]))

    def gathered(
        self,
        raw: Array,
        plans: list[tuple[Plan, slice]],
        physics: list[tuple[Physics, int]],
        rows: NDArray[np.int64],
    ) -> Encoded:
        """Put the figures of blocks together."""

        def column(get: Callable[[Physics], Any]) -> Array:
            return _joined([np.broadcast_to(np.asarray(get(p), np.float64), n) for p, n in physics])

        terms = np.stack(
            [column(lambda p: p.terms.bound_compute), column(lambda p: p.terms.bound_memory),
             column(lambda p: p.terms.bound_link)]
        )  # fmt: skip
        by = np.where(terms.max(axis=0) > 0, terms.argmax(axis=0) + 1, 0)
        return Encoded(
            self.scaler(raw), raw, column(lambda p: p.outside), column(lambda p: p.base),
            column(lambda p: p.terms.bound), by, terms[0], column(lambda p: p.terms.memory), plans, rows,
        )  # fmt: skip

    def choose(self, plan: Plan) -> Choice:
        """What is evaluated for rows of one plan."""
        words, kernel = plan.words, kernel_of(plan.words)
        fixes = tuple(c for c in self.corrections if words.device in c.devices)
        unseen = tuple(c for c in plan.unseen if not (fixes and c == "device"))
        new_device = "device" in unseen
        power = next((c.power for c in reversed(fixes) if c.power), self.power)
        spread, widen = self.spread, 1.0
        if fixes:
            spread = fixes[-1].spread
        elif new_device and self.transfer:
            spread = self.transfer
        elif unseen:
            widen = _DEVICE_WIDENS if new_device else _UNSEEN_WIDENS
        return Choice(
            name=f"{words.op}|{words.dtype}",
            fixes=fixes,
            added=(*(c.learner for c in fixes), *(c.apart[kernel] for c in fixes if kernel in c.apart)),
            share=fixes[-1].share if fixes else 0.0 if new_device and self.abroad else 1.0,
            spread=spread,
            widen=widen,
            power=power,
            power_widen=1.0 if power and plan.machine.spec.id in power.limits.known else _DEVICE_WIDENS,
            unseen=unseen,
            learned=not {"device", "impl", "dtype"} & set(unseen),
        )

    def log_ratio(self, x: Array, choice: Choice) -> Array:
        """Learned log(time / base) of features ``(n, d)``."""
        out: Array = self.learner.predict(x) if choice.share else np.zeros(len(x))
        if choice.share < 1.0 and self.abroad:
            out = choice.share * out + (1.0 - choice.share) * self.abroad.predict(x)
        for learner in choice.added:
            out = out + learner.predict(x)
        return out

    def log_ratio_one(self, row: Array, choice: Choice) -> float:
        """:meth:`log_ratio` of one row ``(d,)``."""
        out = self.learner.predict_one(row) if choice.share else 0.0
        if choice.share < 1.0 and self.abroad:
            out = choice.share * out + (1.0 - choice.share) * self.abroad.predict_one(row)
        for learner in choice.added:
            out += learner.predict_one(row)
        return out

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, e: Encoded, coverage: float, choices: Sequence[Choice] | None = None) -> Answer:
        """Time, power and intervals of encoded rows; of each plan as :meth:`choose` says, unless choices are given."""
        n = len(e.base)
        log_ratio, half = np.empty(n), np.empty(n)
        inside = e.outside <= 0
        learned = np.ones(n, bool)
        choices = choices or [self.choose(plan) for plan, _ in e.plans]
        # Blocks that are treated alike are evaluated together: there may be many, and short ones.
        alike: dict[Any, list[int]] = {}
        for i, choice in enumerate(choices):
            alike.setdefault(choice.kind, []).append(i)
        for members in alike.values():
            rows = _places(e, members)
            x, choice = e.x[rows], choices[members[0]]
            log_ratio[rows] = self.log_ratio(x, choice)
            half[rows] = choice.spread.width(x) * (1.0 + WIDEN * e.outside[rows])
        for (_, part), choice in zip(e.plans, choices, strict=True):
            half[part] *= choice.spread.factor(choice.name, coverage) * choice.widen
            inside[part] &= not choice.unseen
            learned[part] = choice.learned
        power_parts = [choice.power for choice in choices]
        time = np.maximum(e.base * np.exp(np.clip(log_ratio, -20.0, 20.0)), e.bound)
        unknown = [np.full(n, np.nan) for _ in range(5)]
        out = Answer(
            time, half, unknown[0], unknown[1], unknown[2], unknown[3], unknown[4], e, inside, learned
        )  # fmt: skip
        if any(power_parts):
            self._add_power(out, power_parts, coverage)
        return out

    def _add_power(self, out: Answer, power_parts: list[PowerPart | None], coverage: float) -> None:
        e = out.encoded
        use = utilisation(e.compute, e.memory, e.base, out.time)
        # Rows of one part are evaluated together: blocks are many and may be short.
        for part in {id(p): p for p in power_parts if p}.values():
            own = [i for i, each in enumerate(power_parts) if each is part]
            for plan, rows in (e.plans[i] for i in own):
                out.idle[rows], out.cap[rows] = part.limits.of(plan.machine.spec)
            chosen = _places(e, own)
            x, outside = e.x[chosen], e.outside[chosen]
            out.power[chosen] = watts(part.odds(e.raw[chosen], use[chosen]), out.idle[chosen], out.cap[chosen])
            for target, spread in ((out.power_half, part.spread), (out.energy_half, part.energy)):
                target[chosen] = spread.width(x) * (1.0 + WIDEN * outside)
                for plan, rows in (e.plans[i] for i in own):
                    known = plan.machine.spec.id in part.limits.known
                    factor = spread.factor(f"{plan.words.op}|{plan.words.dtype}", coverage)
                    target[rows] *= factor * (1.0 if known else _DEVICE_WIDENS)

    def held(self, words: Words) -> bool:
        """Whether the training rows had this operation."""
        return words.op in self.seen["op"]

    # -- storage --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Facts and arrays."""
        parts: dict[str, State] = {
            "encoder": (self.encoder.state(), {}),
            "scaler": ({}, self.scaler.arrays()),
            "learner": learner_state(self.learner),
            "spread": self.spread.state(),
            "samples": self.samples.state(),
        }
        if self.abroad:
            parts["abroad"] = learner_state(self.abroad)
        if self.transfer:
            parts["transfer"] = self.transfer.state()
        if self.power:
            parts["power"] = self.power.state()
        for i, correction in enumerate(self.corrections):
            parts[f"correction{i}"] = correction.state()
        facts, arrays = join(parts)
        own = {"ops": self.seen["op"], "seen": self.seen, "facts": self.facts, "corrections": len(self.corrections)}
        return {**facts, **own}, arrays

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> FamilyModel:
        """From :meth:`state`."""
        family = family_of(facts["ops"][0])

        def part(name: str, kind: Any) -> Any:
            return kind.from_state(facts[name], part_of(name, arrays)) if name in facts else None

        return cls(
            family,
            Encoder.from_state(family, facts["encoder"]),
            Scaler.from_arrays(part_of("scaler", arrays)),
            learner_from(facts["learner"], part_of("learner", arrays)),
            Intervals.from_state(facts["spread"], part_of("spread", arrays)),
            abroad=learner_from(facts["abroad"], part_of("abroad", arrays)) if "abroad" in facts else None,
            transfer=part("transfer", Intervals),
            power=part("power", PowerPart),
            seen=facts["seen"],
            facts=facts["facts"],
            corrections=[part(f"correction{i}", Correction) for i in range(facts["corrections"])],
            samples=part("samples", Samples),
        )


__all__ = ["BOUNDS", "Answer", "Encoded", "FamilyModel", "Limits"]
