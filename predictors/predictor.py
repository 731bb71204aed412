"""KernelPredictor: what a kernel costs in seconds and joules, learned from measurements on top of physics."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec, known_devices
from wattline.errors import DataError, NotFittedError, ParamError, WattlineError, unknown_name
from wattline.predictors import analytical
from wattline.predictors.bundle import read_bundle, write_bundle
from wattline.predictors.estimate import Estimate
from wattline.predictors.families import family_of
from wattline.predictors.fitting import adapt_family, fit_family
from wattline.predictors.linkspeed import measured_links
from wattline.predictors.model import BOUNDS, Answer, FamilyModel
from wattline.predictors.parts import State, join, part_of
from wattline.predictors.physics import Machine
from wattline.predictors.single import OneRow
from wattline.predictors.table import Block, blocks_of, in_pieces, targets_of
from wattline.predictors.threads import one_thread, run_all
from wattline.workmodels import work_model

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

FIGURES = (
    "time_s", "time_lo_s", "time_hi_s", "power_w", "power_lo_w", "power_hi_w", "energy_j", "energy_lo_j",
    "energy_hi_j", "bound_s",
)  # fmt: skip
COLUMNS = (*FIGURES, "bound_by", "in_domain", "source")
"""Columns of a prediction."""
SOURCES = ("analytical", "transfer", "learned")
"""Where a prediction may come from."""
_THREADED = 4096
"""Rows from which on threads are worth their start."""


class KernelPredictor:
    """Predicts time, power and energy of kernels; see docs/predictors.md for the method.

    Args:
        devices: specifications by device id. Devices of ``devices.toml`` are known besides; ``None``: only those.
        random_state: seed of everything random; equal seeds and data give equal predictors.
        effort: factor on the number of training steps of networks.

    Attributes:
        models_: the fitted model of each family of operations, by its name.
        devices_: specifications of the devices that it was fitted on.
        provenance_: what it was fitted on and when.
    """

    def __init__(
        self, devices: Mapping[str, DeviceSpec] | None = None, *, random_state: int = 0, effort: float = 1.0
    ) -> None:
        self.devices = devices
        self.random_state = random_state
        self.effort = effort

    # -- scikit-learn's manners -----------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of ``__init__``."""
        return {"devices": self.devices, "random_state": self.random_state, "effort": self.effort}

    def set_params(self, **params: Any) -> KernelPredictor:
        """Set arguments of ``__init__``.

        Raises:
            UnknownNameError: it has no such argument.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise unknown_name("parameter", name, self.get_params())
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        fitted = f" fitted on {', '.join(self.devices_)}" if hasattr(self, "devices_") else ""
        return f"<KernelPredictor random_state={self.random_state}{fitted}>"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "models_")

    # -- learning -------------------------------------------------------------------------------------------------

    def fit(self, X: pd.DataFrame, y: pd.DataFrame, groups: Any = None) -> KernelPredictor:
        """Learn from measurements.

        Args:
            X: a row per measurement: ``op``, ``device``, ``impl``, ``dtype``, the parameters of the operations
                (absent: NaN), and ``regime`` and ``data`` where known.
            y: ``time_s`` in seconds and ``power_w`` in watts (NaN where nobody measured), in the order of ``X``.
            groups: a label per row; rows of one group never judge a model that learned from others of it. Default:
                rows of the same operation and parameters form a group.

        Returns:
            Itself.

        Raises:
            DataError: rows, columns or figures that cannot be learned from.
            UnknownNameError: an operation, device or format that nothing is known of.
            ParamError: a parameter that is missing or out of range.
        """
        blocks = blocks_of(X)
        time, power = targets_of(y, X)
        if not blocks:
            raise DataError("there is no row to learn from", todo="measure something first: `wattline bench`")
        self._forget()
        labels = default_groups(X) if groups is None else np.asarray(groups)
        if len(labels) != len(X):
            raise DataError(f"groups has {len(labels)} entries and X {len(X)} rows")
        by_family = _by_family(blocks)
        machines = {b.words.device: self._machine(b.words.device) for b in blocks}
        self.devices_ = {name: machine.spec for name, machine in sorted(machines.items())}
        links = self._learn_links(blocks, time, set(self.devices_))
        with one_thread("scipy.linalg"):
            self.models_: dict[str, FamilyModel] = {
                name: self._fitted(own, time, power, labels) for name, own in by_family.items()
            }
        self.provenance_: dict[str, Any] = {
            "rows": len(X),
            "devices": sorted(self.devices_),
            "ops": sorted({b.words.op for b in blocks}),
            "fitted_at": clock.strftime("%Y-%m-%dT%H:%M:%SZ", clock.gmtime()),
            "split": "whole groups left out in turn (cross-fitting)",
            "groups": "given" if groups is not None else "rows of equal operation and parameters",
            "scores": {name: model.facts for name, model in self.models_.items()},
        }
        if links:
            self.provenance_["links"] = links
        return self

    def adapt(self, X: pd.DataFrame, y: pd.DataFrame) -> KernelPredictor:
        """A new predictor that has learned a new device (or software version) from a few rows; this one stays.

        Args:
            X, y: a few dozen rows, as in :meth:`fit`.

        Raises:
            NotFittedError: nothing was learned before.
        """
        self._check_fitted()
        blocks = blocks_of(X)
        time, power = targets_of(y, X)
        if not blocks:
            raise DataError("there is no row to adapt to")
        out = copy(self)
        out._forget()
        out.models_ = dict(self.models_)
        specs = {b.words.device: self._machine(b.words.device).spec for b in blocks}
        out.devices_ = {**self.devices_, **specs}
        # What was learned of a device rests on the speed of its links: only new devices are given one.
        links = out._learn_links(blocks, time, set(specs) - set(self.devices_))
        with one_thread("scipy.linalg"):
            for name, own in _by_family(blocks).items():
                known = self.models_.get(name)
                out.models_[name] = (
                    adapt_family(known, own, time, power, out._machine, seed=self.random_state)
                    if known
                    else out._fitted(own, time, power, default_groups(X))
                )
        step = {"rows": len(X), "devices": sorted(specs)}
        out.provenance_ = {**self.provenance_, "adapted": [*self.provenance_.get("adapted", []), step]}
        if links:
            out.provenance_["links"] = {**self.provenance_.get("links", {}), **links}
        return out

    def _fitted(self, blocks: list[Block], time: Any, power: Any, groups: Any) -> FamilyModel:
        family = family_of(blocks[0].words.op)
        return fit_family(
            family, blocks, time, power, groups, machine=self._machine, seed=self.random_state, effort=self.effort
        )

    # -- asking ---------------------------------------------------------------------------------------------------

    def predict(self, X: pd.DataFrame, coverage: float = 0.9) -> pd.DataFrame:
        """Predict many rows.

        Args:
            X: as in :meth:`fit`.
            coverage: share of measurements that the intervals should hold, between 0 and 1.

        Returns:
            A frame in the index of ``X`` with :data:`COLUMNS`: seconds, watts, joules, and where they come from
            (``bound_by`` and ``source`` as categories).

        Raises:
            NotFittedError: it was not fitted.
            DataError, ParamError, UnknownNameError: see :meth:`fit`.
            UnsupportedError: a device has no known rate for a format.
        """
        import pandas as pd

        self._check_fitted()
        check_coverage(coverage)
        blocks = blocks_of(X)
        n = len(X)
        figures = np.full((len(FIGURES), n), np.nan)
        out: dict[str, NDArray[Any]] = dict(zip(FIGURES, figures, strict=True))
        out |= {"bound_by": np.zeros(n, np.int8), "in_domain": np.zeros(n, bool), "source": np.zeros(n, np.int8)}
        pieces: list[tuple[FamilyModel, list[Block]]] = []
        for name, own in _by_family(blocks).items():
            model = self.models_.get(name)
            known = [b for b in own if model is not None and model.held(b.words)]
            unknown = [b for b in own if model is None or not model.held(b.words)]
            if model is not None:
                pieces += [(model, part) for part in in_pieces(known)]
            for block in unknown:
                analytical.fill(out, block, self._machine(block.words.device), coverage)

        def answer(piece: tuple[FamilyModel, list[Block]]) -> None:
            model, own = piece
            _write(out, model.answer(model.encode(own, self._machine), coverage))

        # numpy lets go of the interpreter in most of what is done with many rows; pieces write to rows of their own.
        run_all(answer, pieces, workers=None if n >= _THREADED else 1)
        frame = pd.DataFrame(figures.T, index=X.index, columns=list(FIGURES), copy=False)
        frame["bound_by"] = pd.Categorical.from_codes(out["bound_by"], pd.Index(BOUNDS))
        frame["in_domain"] = out["in_domain"]
        frame["source"] = pd.Categorical.from_codes(out["source"], pd.Index(SOURCES))
        return frame

    def predict_one(
        self,
        *,
        op: str,
        device: str | None = None,
        dtype: str | None = None,
        impl: str | None = None,
        regime: str | None = None,
        data: str | None = None,
        coverage: float = 0.9,
        **params: Any,
    ) -> Estimate:
        """Predict one row; the fast path for schedulers and searches.

        Args:
            op: the operation.
            device, dtype, impl, regime, data: may be left out where the predictor knows exactly one (of regimes:
                the first measured of cold, graph, hot, eager).
            coverage: nominal coverage of the intervals.
            params: parameters of the operation; ``None`` and NaN count as absent.

        Raises:
            NotFittedError, ParamError, UnknownNameError, UnsupportedError: as in :meth:`predict`.
        """
        self._check_fitted()
        one: OneRow | None = self.__dict__.get("_one")
        if one is None:
            one = self._one = OneRow(self.models_, self._machine)
        return one.estimate(op, (device, impl, dtype, regime, data), params, coverage)

    def estimate(self, op: str, *, coverage: float = 0.9, **params: Any) -> Estimate:
        """What one kernel costs; prints as one line, and explains itself.

        Example:
            >>> predictor.estimate("gemm.dense", m=512, n=512, k=512, dtype="fp32")  # doctest: +SKIP
        """
        return self.predict_one(op=op, coverage=coverage, **params)

    # -- storage --------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a bundle: data alone, versioned, with its provenance; see :mod:`wattline.predictors.bundle`.

        Raises:
            NotFittedError: there is nothing to save.
            StorageError: the file cannot be written.
        """
        self._check_fitted()
        parts: dict[str, State] = {name: model.state() for name, model in self.models_.items()}
        facts, arrays = join(parts)
        specs = {**(self.devices or {}), **self.devices_}
        whole = {
            "models": facts,
            "devices": {name: spec.to_dict() for name, spec in specs.items()},
            "fitted_on": list(self.devices_),
            "random_state": self.random_state,
            "effort": self.effort,
        }
        write_bundle(path, whole, arrays, self.provenance_)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KernelPredictor:
        """Read a bundle that :meth:`save` wrote. No code of the file is run.

        Raises:
            BundleError: damaged, foreign or newer.
        """
        facts, arrays, head = read_bundle(path)
        try:
            devices = {name: DeviceSpec.from_dict(spec) for name, spec in facts["devices"].items()}
            out = cls(devices, random_state=facts["random_state"], effort=facts["effort"])
            out.devices_ = {name: devices[name] for name in facts["fitted_on"]}
            models = facts["models"]
            out.models_ = {n: FamilyModel.from_state(models[n], part_of(n, arrays)) for n in models}
            out.provenance_ = head["provenance"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, WattlineError) as error:
            from wattline.errors import BundleError

            raise BundleError(
                f"the bundle {path} does not make sense", why=f"{type(error).__name__}: {error}",
                todo="fit the predictor again",
            ) from None  # fmt: skip
        return out

    # -- inside ---------------------------------------------------------------------------------------------------

    def _machine(self, device: str) -> Machine:
        cache: dict[str, Machine] = self.__dict__.setdefault("_machines", {})
        if device not in cache:
            own = {**(self.devices or {}), **getattr(self, "devices_", {})}
            spec = own.get(device) or known_devices().get(device)
            if spec is None:
                raise unknown_name("device", device, {*own, *known_devices()}, listing="wattline list devices")
            cache[device] = Machine(spec)
        return cache[device]

    def _learn_links(self, blocks: list[Block], time: NDArray[np.float64], devices: set[str]) -> dict[str, Any]:
        """Give devices the speeds of links that their datasheets leave out; returns the facts of the fits."""
        found = {k: v for k, v in measured_links(blocks, time, self._machine).items() if k in devices}
        for name, links in found.items():
            speeds = {link: speed.bandwidth for link, speed in links.items()}
            self.devices_[name] = self.devices_[name].with_links(speeds)
        self.__dict__.pop("_machines", None)
        return {name: {link: asdict(speed) for link, speed in links.items()} for name, links in found.items()}

    def _forget(self) -> None:
        """Drop what was worked out for speed, and what was fitted on other data."""
        for name in ("_one", "_machines", "models_", "devices_", "provenance_"):
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_one", "_machines")}

    def _check_fitted(self) -> None:
        if not hasattr(self, "models_"):
            raise NotFittedError("this KernelPredictor was not fitted", todo="call fit(X, y), or load a bundle")


def check_coverage(coverage: float) -> None:
    """Raise unless a coverage lies between 0 and 1."""
    if not (isinstance(coverage, int | float) and 0 < coverage < 1):
        raise ParamError(f"coverage must lie between 0 and 1, not {coverage!r}", todo="give for example coverage=0.9")


def default_groups(X: pd.DataFrame) -> NDArray[np.int64]:
    """A group per row: rows of the same operation and numeric parameters belong together."""
    import pandas as pd

    from wattline.predictors.table import NAMED

    shape = X[["op", *[c for c in X.columns if c not in NAMED and pd.api.types.is_numeric_dtype(X[c])]]]
    return np.asarray(shape.groupby(list(shape.columns), dropna=False, sort=False).ngroup(), np.int64)


def _by_family(blocks: list[Block]) -> dict[str, list[Block]]:
    out: dict[str, list[Block]] = {}
    for block in blocks:
        work_model(block.words.op)  # an operation that nobody knows is an error, not a guess
        out.setdefault(family_of(block.words.op).name, []).append(block)
    return out


def _write(out: dict[str, NDArray[Any]], a: Answer) -> None:
    """Write the figures of an answer into the columns of a prediction."""
    rows, e = a.encoded.rows, a.encoded
    grow, power_grow, energy_grow = (np.exp(np.minimum(h, 50.0)) for h in (a.time_half, a.power_half, a.energy_half))
    energy = a.time * a.power
    columns = {
        "time_s": a.time, "time_lo_s": np.maximum(a.time / grow, e.bound), "time_hi_s": a.time * grow,
        "power_w": a.power,
        "power_lo_w": np.maximum(a.power / power_grow, a.idle), "power_hi_w": np.minimum(a.power * power_grow, a.cap),
        "energy_j": energy, "energy_lo_j": energy / energy_grow, "energy_hi_j": energy * energy_grow,
        "bound_s": e.bound, "bound_by": e.by, "in_domain": a.inside, "source": 1 + a.learned,
    }  # fmt: skip
    for name, values in columns.items():
        out[name][rows] = values
