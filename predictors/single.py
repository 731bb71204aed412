"""One estimate at a time, in tens of microseconds: plans are made once for each set of words and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wattline.errors import ParamError
from wattline.predictors import analytical
from wattline.predictors.estimate import NAN, Estimate, Explanation
from wattline.predictors.families import family_of
from wattline.predictors.intervals import WIDEN
from wattline.predictors.linkspeed import link_notes
from wattline.predictors.model import BOUNDS, Choice, FamilyModel
from wattline.predictors.physics import ONE, Machine
from wattline.predictors.power import utilisation_one, watts_one
from wattline.predictors.rows import Physics, Plan
from wattline.predictors.table import FLAGS, Words, check_format, word_of
from wattline.workmodels import work_model

_REGIME_ORDER = ("cold", "graph", "hot", "eager", "")
_WORDS = (str, bool, np.bool_)
"""Types of parameters that are words; a tuple, which is quicker to ask than a union."""
Named = tuple[str | None, str | None, str | None, str | None, str | None]


class Ready:
    """A model made ready for questions of one set of words: what the words decide is looked up once.

    Args:
        model: the family's model.
        plan: the plan of the words.
    """

    def __init__(self, model: FamilyModel, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.choice: Choice = model.choose(plan)
        self.question = dict(plan.words.categories())
        self.hot: list[float] = plan.hot.tolist()
        self._factors: dict[float, tuple[float, float, float]] = {}
        part = self.choice.power
        self.ends = part.limits.of(plan.machine.spec) if part else (NAN, NAN)
        self._spreads = (self.choice.spread, *((part.spread, part.energy) if part else ()))
        self._scales = np.stack([spread.scale.weights for spread in self._spreads])

    def factors(self, coverage: float) -> tuple[float, float, float]:
        """Factors on the local scales of time, power and energy."""
        if coverage not in self._factors:
            name, choice, part = self.choice.name, self.choice, self.choice.power
            time = choice.spread.factor(name, coverage) * choice.widen
            rest = (part.spread.factor(name, coverage), part.energy.factor(name, coverage)) if part else (NAN, NAN)
            self._factors[coverage] = (time, rest[0] * choice.power_widen, rest[1] * choice.power_widen)
        return self._factors[coverage]

    def estimate(self, numbers: Mapping[str, float], coverage: float) -> Estimate:
        """Answer one question; the same figures as :meth:`FamilyModel.answer`."""
        model, plan, choice = self.model, self.plan, self.choice
        physics = model.encoder.physics(plan, numbers, ONE, many=False)
        terms, outside = physics.terms, float(physics.outside)
        features = [*physics.features, *self.hot]
        x = model.scaler.one(np.array(features))
        log_ratio = model.log_ratio_one(x, choice)
        bound = float(terms.bound)
        time = max(float(physics.base) * math.exp(min(max(log_ratio, -20.0), 20.0)), bound)
        factor, power_factor, energy_factor = self.factors(coverage)
        stretch = 1.0 + WIDEN * outside
        logs = (self._scales @ x).tolist()
        spreads = self._spreads
        grow = math.exp(min(spreads[0].width_of(logs[0]) * factor * stretch, 50.0))
        power = power_lo = power_hi = energy_lo = energy_hi = NAN
        if choice.power is not None:
            idle, cap = self.ends
            use = utilisation_one(terms.compute, terms.memory, physics.base, time)
            power = watts_one(choice.power.odds_one(np.array([*use, *features])), idle, cap)
            spread = math.exp(min(spreads[1].width_of(logs[1]) * power_factor * stretch, 50.0))
            power_lo, power_hi = max(power / spread, idle), min(power * spread, cap)
            spread = math.exp(min(spreads[2].width_of(logs[2]) * energy_factor * stretch, 50.0))
            energy_lo, energy_hi = time * power / spread, time * power * spread
        by = "nothing"
        if bound > 0:
            by = "compute" if terms.bound_compute == bound else "memory" if terms.bound_memory == bound else "link"

        def why() -> Explanation:
            notes = [f"no training row had this {name}" for name in plan.unseen]
            twin = model.encoder.twin(plan.words)
            if twin:
                notes.append(f"taken to be like {twin[1]} on {twin[0]}, as the few rows of it are")
            if outside > 0:
                notes.append(f"{outside:.2g} octaves outside the range of the training rows")
            notes += link_notes(terms, plan.machine.spec)
            parts = _terms(physics, time)
            return Explanation(by, max(parts, key=parts.__getitem__), parts, model.samples.nearest(x), notes)

        return Estimate(
            time, max(time / grow, bound), time * grow, power, power_lo, power_hi, time * power, energy_lo, energy_hi,
            bound, by, outside == 0 and not choice.unseen, "learned" if choice.learned else "transfer", coverage,
            {**self.question, **numbers}, why,
        )  # fmt: skip


class OneRow:
    """Answers single questions with the models of a predictor.

    Args:
        models: fitted models by family.
        machine: the machine of a device id.
    """

    def __init__(self, models: Mapping[str, FamilyModel], machine: Callable[[str], Machine]) -> None:
        self.models, self.machine = models, machine
        self._plans: dict[Any, tuple[Ready | None, Words]] = {}

    def estimate(self, op: str, named: Named, params: Mapping[str, Any], coverage: float) -> Estimate:
        """See :meth:`wattline.predictors.predictor.KernelPredictor.predict_one`."""
        if not 0 < coverage < 1:
            raise ParamError(f"coverage must lie between 0 and 1, not {coverage!r}")
        numbers: dict[str, float] = {}
        others: list[tuple[str, str]] = []
        for name, value in params.items():
            if value is None:
                continue
            if isinstance(value, _WORDS):
                others.append((name, word_of(value)))
                continue
            try:
                number = float(value)
            except (TypeError, ValueError):
                if type(value).__name__ == "NAType":  # pandas.NA: absent, as NaN is
                    continue
                raise ParamError(f"parameter {name!r} of {op} must be a number or a word, not {value!r}") from None
            if math.isnan(number):
                continue
            if name in FLAGS:
                others.append((name, word_of(bool(number))))
            else:
                numbers[name] = number
        key = (op, named, tuple(others))
        if key not in self._plans:
            self._plans[key] = self._plan(op, named, tuple(sorted(others)))
        ready, words = self._plans[key]
        if ready is None:
            return self._analytical(words, numbers, coverage)
        return ready.estimate(numbers, coverage)

    def _plan(self, op: str, named: Named, others: tuple[tuple[str, str], ...]) -> tuple[Ready | None, Words]:
        work_model(op)
        model = self.models.get(family_of(op).name)
        device, impl, dtype, regime, data = named
        seen = model.seen if model else {}
        device = self._only(device, "device", seen)
        dtype = self._only(dtype, "dtype", seen)
        check_format(dtype)
        if regime is None:
            regime = next((r for r in _REGIME_ORDER if r in seen.get("regime", ())), "")
        if data is None:
            fills = seen.get("data", [])
            data = "uniform" if "uniform" in fills else fills[0] if len(fills) == 1 else ""
        if model is None or op not in model.seen["op"]:
            return None, Words(op, device, impl or "", dtype, regime, data, others)
        impl = self._only(impl, "impl", seen)
        # An option left out means the one most often measured; the estimate's question shows it.
        whole = {**model.facts.get("common", {}), **dict(others)}
        words = Words(op, device, impl, dtype, regime, data, tuple(sorted(whole.items())))
        return Ready(model, model.encoder.plan(words, self.machine(device))), words

    @staticmethod
    def _only(value: str | None, name: str, seen: Mapping[str, list[str]]) -> str:
        if isinstance(value, str):
            return value
        given: Any = value  # a table's empty cell arrives as NaN
        if given is not None and not (isinstance(given, float) and math.isnan(given)):
            raise ParamError(f"{name} must be a word, not {value!r}")
        known = seen.get(name, [])
        if len(known) == 1:
            return known[0]
        raise ParamError(
            f"{name} is missing", why=f"this predictor knows {', '.join(known) or 'none'}", todo=f"give {name}=..."
        )

    def _analytical(self, words: Words, numbers: Mapping[str, float], coverage: float) -> Estimate:
        arrays = {k: np.array([v]) for k, v in numbers.items()}
        a = analytical.work_out(words, arrays, self.machine(words.device), coverage, 1)
        time, by = float(a.time[0]), BOUNDS[int(a.by[0])]

        def why() -> Explanation:
            terms = {"launch": float(a.alpha), by: float(a.busy[0])}
            terms["usual inefficiency"] = time - sum(terms.values())
            notes = ["nothing was learned of this op", *link_notes(a.terms, self.machine(words.device).spec)]
            return Explanation(by, max(terms, key=terms.__getitem__), terms, (), notes)

        return Estimate(
            time, float(a.lo[0]), float(a.hi[0]), NAN, NAN, NAN, NAN, NAN, NAN, float(a.bound[0]), by, False,
            "analytical", coverage, {**dict(words.categories()), **numbers}, why,
        )  # fmt: skip


def _terms(p: Physics, time: float) -> dict[str, float]:
    """Seconds by cause, adding up to the estimated time."""
    t = p.terms
    ideal = {"compute": float(t.compute), "memory": float(t.memory), "link": float(t.link)}
    name = max(ideal, key=ideal.__getitem__)
    own, rest = min(ideal[name], float(p.busy)), float(p.base) - float(p.alpha) - float(p.busy)
    terms = {
        "launch": float(p.alpha),
        name: own,
        "passes over the activations": float(p.passed),
        "tiles and waves": float(p.busy) - float(p.passed) - own,
        # What a host prepares beside the work does not add to it.
        "launched beside the work" if rest < 0 else "latency and link inefficiency": rest,
    }
    terms = {k: v for k, v in terms.items() if k in ("launch", name) or abs(v) > 1e-6 * time}
    terms["learned inefficiency"] = time - sum(terms.values())
    return terms


