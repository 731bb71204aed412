"""Fitting the model of one family, and adapting it to a new device from a few rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec
from wattline.predictors.base import (
    Base,
    Curve,
    fit_beta,
    fit_kernel,
    fit_latency,
    launch_floor,
    share_links,
    towards_usual,
)
from wattline.predictors.families import Family
from wattline.predictors.floors import with_floors
from wattline.predictors.forest import unavailable
from wattline.predictors.intervals import Intervals
from wattline.predictors.learners import Averaged, Learner, Scaler
from wattline.predictors.model import Encoded, FamilyModel
from wattline.predictors.parts import Correction, PowerPart
from wattline.predictors.physics import Machine, many
from wattline.predictors.power import Limits, utilisation
from wattline.predictors.rows import Encoder, Grounds, Plan, kernel_of
from wattline.predictors.samples import Samples
from wattline.predictors.table import Block
from wattline.predictors.training import FEW, fit_abroad, fit_correction, fit_learner, group_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FOLDS = 4
_POWER_ROWS = 12
"""Rows with measured power below which power is not learned."""
_TRANSFER_ROWS = 6000
_SHARES = (1.0, 0.5, 0.0)
"""Weights of the learner that are tried on a new device, beside the one for devices that nobody measured."""
_FLOOR_ROWS = 20
"""Rows of one implementation and format on one device from which a launch floor of their own is read."""
_APART_ROWS = 8
"""Rows of one kernel from which a correction of its own is sought."""
_APART = 0.9
"""Share of the error that it may leave."""


def fit_family(
    family: Family,
    blocks: Sequence[Block],
    time: Array,
    power: Array,
    groups: NDArray[Any],
    *,
    machine: Callable[[str], Machine],
    seed: int,
    effort: float,
) -> FamilyModel:
    """Fit the model of one family.

    Args:
        family: the family.
        blocks: its rows.
        time, power: seconds and watts of all rows of the frame (NaN: not measured).
        groups: group of each row of the frame; a group is never split between fitting and judging.
        machine: the machine of a device id.
        seed: of everything random.
        effort: factor on the number of training steps of networks.
    """
    rows = np.concatenate([b.rows for b in blocks])
    t, p, own_groups = time[rows], power[rows], groups[rows]
    words = [b.words for b in blocks]
    categories = sorted({pair for w in words for pair in w.categories()})
    encoder = Encoder(family, Base({"*": Curve((0.0,), (1e-6,), (1.0,))}), _extras(family, blocks), categories)
    encoder.ranges = _ranges(encoder, blocks)
    # What learns nothing is worked out once for all that asks for it.
    plans = [encoder.plan(b.words, machine(b.words.device)) for b in blocks]
    grounds = [encoder.grounds(plan, b.numbers, many(), many=True) for plan, b in zip(plans, blocks, strict=True)]
    encoder.details = _details(grounds)
    encoder.base = _fit_base(encoder, blocks, time, plans, grounds)
    d = len(encoder.names)
    blank = Scaler(np.zeros(d), np.ones(d), np.full(d, -np.inf), np.full(d, np.inf))
    seen = {c: sorted({v for w in words for k, v in w.categories() if k == c}) for c, _ in categories}
    none: Any = None
    draft = FamilyModel(family, encoder, blank, none, none, abroad=None, transfer=None, power=None, seen=seen, facts={})
    e = draft.encode(blocks, machine, grounds)
    scaler = Scaler.fit(e.x)
    # Words stay 0 and 1, so that a word never seen is all zeros, as when a network learns without it.
    scaler.leave(encoder.numeric)
    scaler.mute([i for i, name in enumerate(encoder.names) if name in family.power_only])
    e.x = scaler(e.x)
    samples = Samples.draw(blocks, e.x, t, seed)
    target = np.log(t / e.base)
    fold = group_folds(own_groups, FOLDS if len(rows) > FEW else 8, seed)
    drop = _one_hot_columns(encoder)
    fitted = fit_learner(e.x, target, fold, seed=seed, drop=drop, effort=effort)
    classes = _classes(e)
    error = target - fitted.held_out
    spread = Intervals.fit(e.x, error, classes)
    devices = np.concatenate([np.full(len(b.rows), b.words.device, dtype=object) for b in blocks])
    abroad, transfer = _fit_abroad(e.x, target, devices, encoder, own_groups, seed=seed, effort=effort)
    facts = {
        "rows": len(rows), "groups": len(np.unique(own_groups)), "folds": int(fold.max()) + 1,
        "held_out_error": {k: round(v, 5) for k, v in fitted.scores.items()},
        "median_ape": float(np.median(np.abs(np.expm1(-error)))),
        "rows_with_power": int(np.isfinite(p).sum()),
        "not_tried": {"trees": unavailable()} if len(rows) > FEW and unavailable() else {},
        "common": _common(blocks),
    }  # fmt: skip
    model = FamilyModel(
        family, encoder, scaler, fitted.learner, spread, abroad=abroad, transfer=transfer, power=None, seen=seen,
        facts=facts, samples=samples,
    )  # fmt: skip
    predicted = np.maximum(e.base * np.exp(fitted.held_out), e.bound)
    model.power = _fit_power(
        model, e, predicted, t, p, fold=fold, classes=classes, drop=drop, seed=seed, effort=effort, prior=None
    )
    return model


def adapt_family(
    model: FamilyModel,
    blocks: Sequence[Block],
    time: Array,
    power: Array,
    machine: Callable[[str], Machine],
    *,
    seed: int,
) -> FamilyModel:
    """A copy of a model that a few rows have corrected for their devices; ``model`` stays as it is."""
    out = copy(model)
    out.seen = {k: list(v) for k, v in model.seen.items()}
    out.encoder = with_floors(model, blocks, time, machine)
    e = out.encode(blocks, machine)
    t, p = time[e.rows], power[e.rows]
    # Every row is its own group: what few rows there are were chosen by the caller.
    fold = group_folds(np.arange(len(t)), 10, seed)
    tried = {}
    shares = _SHARES if model.abroad else _SHARES[:1]
    for share in shares:
        choices = [replace(out.choose(plan), share=share) for plan, _ in e.plans]
        before = out.answer(e, 0.9, choices)
        fitted = fit_correction(e.x, np.log(t / before.time), fold, out.encoder.names)
        tried[share] = (fitted, before)
    # More of what other devices taught counts only where it helps by more than chance.
    error = {share: min(fitted.scores.values()) for share, (fitted, _) in tried.items()}
    share = min(shares, key=lambda share: (error[share] > 1.02 * min(error.values()), -share))
    fitted, before = tried[share]
    classes = _classes(e)
    residual = np.log(t / before.time)
    apart, held = _kernels_apart(e, residual, fitted.held_out, out.encoder.names, seed=seed)
    spread = Intervals.fit(e.x, residual - held)
    predicted = np.maximum(before.time * np.exp(held), e.bound)
    part = _fit_power(
        model, e, predicted, t, p, fold=fold, classes=classes, drop=[], seed=seed, effort=1.0, prior=model.power
    )
    devices = tuple(sorted({plan.words.device for plan, _ in e.plans}))
    out.corrections = [*model.corrections, Correction(devices, fitted.learner, spread, part, len(t), share, apart)]
    return out


def _kernels_apart(
    e: Encoded, residual: Array, held: Array, names: Sequence[str], *, seed: int
) -> tuple[dict[str, Learner], Array]:
    """What single kernels leave of their residuals, where a correction of their own errs clearly less.

    Kernels whose names no training row had look alike to a correction of all.

    Returns:
        Learners by kernel, and what the rows' own folds left out say with them.
    """
    kernels: dict[str, list[NDArray[np.int64]]] = {}
    for plan, rows in e.plans:
        kernels.setdefault(kernel_of(plan.words), []).append(np.arange(rows.start, rows.stop))
    found: dict[str, Learner] = {}
    out = held.copy()
    for name, parts in kernels.items() if len(kernels) > 1 else ():
        rows_of = np.concatenate(parts)
        left = (residual - held)[rows_of]
        if len(left) < _APART_ROWS:
            continue
        fold = group_folds(np.arange(len(left)), 10, seed)
        fitted = fit_correction(e.x[rows_of], left, fold, names)
        if np.mean(np.abs(fitted.held_out - left)) < _APART * np.mean(np.abs(left)):
            found[name] = fitted.learner
            out[rows_of] += fitted.held_out
    return found, out


def _fit_power(
    model: FamilyModel,
    e: Encoded,
    predicted: Array,
    time: Array,
    power: Array,
    *,
    fold: NDArray[np.int64],
    classes: NDArray[Any],
    drop: list[NDArray[np.int64]],
    seed: int,
    effort: float,
    prior: PowerPart | None,
) -> PowerPart | None:
    has = np.isfinite(power)
    if has.sum() < _POWER_ROWS:
        return None
    specs: dict[str, DeviceSpec] = {plan.words.device: plan.machine.spec for plan, _ in e.plans}
    devices = np.empty(len(time), dtype=object)
    for plan, rows in e.plans:
        devices[rows] = plan.words.device
    limits = Limits.fit(devices[has], power[has], specs)
    if prior:
        limits.known = {**prior.limits.known, **limits.known}
    ends = np.array([limits.known[d] for d in devices[has]]).T
    use = utilisation(e.compute, e.memory, e.base, predicted)[has]
    # What only readings of power go by is learned from many rows; beside few it is noise.
    names = enumerate(model.encoder.names)
    mute = [i for i, name in names if name in model.family.power_only and has.sum() <= FEW]
    time_error = np.log(time / predicted)[has]
    return PowerPart.fit(
        e.raw[has], use, power[has], time_error, x=e.x[has], numeric=model.encoder.numeric, mute=mute,
        limits=limits, ends=(ends[0], ends[1]),
        fold=fold[has], classes=classes[has],
        seed=seed + 1, drop=drop, effort=effort, prior=prior,
    )  # fmt: skip


def _fit_base(
    encoder: Encoder, blocks: Sequence[Block], time: Array, plans: Sequence[Plan], grounds: Sequence[Grounds]
) -> Base:
    """The curves of the base from the training rows."""
    found: dict[str, list[tuple[Array, Array, Array]]] = {}
    specs: dict[str, DeviceSpec] = {}
    for block, plan, (given, *_, seconds, _features) in zip(blocks, plans, grounds, strict=True):
        w, n = block.words, len(block.rows)
        if encoder.collective:
            beside: Any = np.log2(block.numbers["world_size"])
        else:
            beside = encoder.family.streamed(given, plan.machine) if encoder.family.streamed else 0.0
        parts = [np.broadcast_to(np.asarray(part, np.float64), n) for part in (beside, time[block.rows], seconds)]
        for key in Base.keys(encoder.collective, w)[: 1 if encoder.collective else 2]:
            specs[key] = plan.machine.spec
            found.setdefault(key, []).append((parts[0], parts[1], parts[2]))
    whole = {k: tuple(np.concatenate(column) for column in zip(*parts, strict=True)) for k, parts in found.items()}
    # A kernel of which few rows are known shares the floor of its device.
    whole = {k: parts for k, parts in whole.items() if k.count("|") < 2 or len(parts[0]) >= _FLOOR_ROWS}
    if encoder.collective:
        base = Base(_link_curves(whole, {k.split("|", 1)[1] for k, spec in specs.items() if spec.link_bandwidth}))
    else:
        base = Base({k: fit_kernel(t, b, streamed, launch_floor(specs[k])) for k, (streamed, t, b) in whole.items()})
    base.add_means()
    return base


def _link_curves(rows: Mapping[str, tuple[Array, ...]], listed: set[str]) -> dict[str, Curve]:
    """The curves of collectives from (log2 of ranks, seconds, seconds on the link) by ``op|device``.

    ``listed`` are the devices whose datasheet names the speed of their links.
    """
    parts = {
        (key.split("|", 1)[1], float(at), key): (t[position == at], busy[position == at])
        for key, (position, t, busy) in rows.items()
        for at in np.unique(position)
    }
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for device, at in sorted({(device, at) for device, at, _ in parts}):
        own = {key: part for (d, a, key), part in parts.items() if (d, a) == (device, at)}
        for key, shared in share_links({key: fit_beta(*part) for key, part in own.items()}).items():
            beta = towards_usual(shared) if device in listed else shared
            alpha, extra = fit_latency(*own[key], beta)
            points.setdefault(key, []).append((at, alpha, beta, extra))
    curves = {}
    for key, rows_of_key in points.items():
        places, alphas, betas, extras = (tuple(part) for part in zip(*rows_of_key, strict=True))
        curves[key] = Curve(places, alphas, betas, extras)
    return curves


def _fit_abroad(
    x: Array, target: Array, devices: NDArray[Any], encoder: Encoder, groups: NDArray[Any], *, seed: int, effort: float
) -> tuple[Averaged | None, Intervals | None]:
    """A learner for devices that nobody measured, and its intervals from errors on each device left out in turn."""
    names = np.unique(devices)
    if len(names) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(target))[:_TRANSFER_ROWS]
    asked = x.copy()
    asked[:, [encoder.numeric + i for i, (c, _) in enumerate(encoder.categories) if c == "device"]] = 0.0

    def learned(rows: NDArray[np.int64]) -> Averaged:
        return fit_abroad(asked[rows], target[rows], groups[rows], seed=seed, effort=effort)

    error = np.full(len(target), np.nan)
    for name in names:
        test, train = chosen[devices[chosen] == name], chosen[devices[chosen] != name]
        if len(test) >= 5 and len(train) >= 50:
            error[test] = target[test] - learned(train).predict(asked[test])
    known = np.isfinite(error)
    if known.sum() < 20:
        return None, None
    return learned(chosen), Intervals.across(asked[known], error[known], devices[known])


def _extras(family: Family, blocks: Sequence[Block]) -> Mapping[str, float]:
    """Numeric parameters beyond the family's that vary in the data, with their medians."""
    values: dict[str, list[Array]] = {}
    for block in blocks:
        for name, column in block.numbers.items():
            if name not in family.params:
                values.setdefault(name, []).append(column[~np.isnan(column)])
    out = {}
    for name, parts in values.items():
        column = np.concatenate(parts)
        if len(column) and column.min() < column.max():
            out[name] = float(np.median(column))
    return out


def _details(grounds: Sequence[Grounds]) -> tuple[str, ...]:
    """Figures of the work models that vary in the data: what bounds nothing may still explain."""
    values: dict[str, list[Array]] = {}
    for _, _, _, terms, _, _ in grounds:
        for name, value in terms.details.items():
            values.setdefault(name, []).append(np.atleast_1d(np.asarray(value, np.float64)))
    whole = {name: np.concatenate(parts) for name, parts in values.items()}
    return tuple(sorted(name for name, column in whole.items() if column.min() < column.max()))


def _ranges(encoder: Encoder, blocks: Sequence[Block]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every numeric parameter."""
    out: dict[str, tuple[float, float]] = {}
    for name in (*encoder.family.params, *encoder.extras):
        found = [b.numbers[name] for b in blocks if name in b.numbers]
        values = np.concatenate(found) if found else np.empty(0)
        values = values[~np.isnan(values)]
        if len(values):
            out[name] = (float(values.min()), float(values.max()))
    return out


def _common(blocks: Sequence[Block]) -> dict[str, str]:
    """The most frequent word of each option, which a question that leaves the option out means."""
    counts: dict[str, dict[str, int]] = {}
    for block in blocks:
        for name, word in block.words.others:
            own = counts.setdefault(name, {})
            own[word] = own.get(word, 0) + len(block.rows)
    return {name: max(sorted(own), key=own.__getitem__) for name, own in counts.items()}


def _one_hot_columns(encoder: Encoder) -> list[NDArray[np.int64]]:
    """For device and implementation: the columns of their words, where there are several."""
    out = []
    for name in ("device", "impl"):
        columns = [encoder.numeric + i for i, (c, _) in enumerate(encoder.categories) if c == name]
        if len(columns) > 1:
            out.append(np.array(columns, np.int64))
    return out


def _classes(e: Encoded) -> NDArray[Any]:
    out = np.empty(len(e.base), dtype=object)
    for plan, rows in e.plans:
        out[rows] = f"{plan.words.op}|{plan.words.dtype}"
    return out.astype(str)
