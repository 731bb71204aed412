"""The learned part: small regressors that are fitted with care and evaluated as a few matrix products.

Each learner maps features ``(n, d)`` to one figure a row, knows its arrays (:meth:`arrays`) and comes back from them
without running any code of the file. Inputs are standardised and clipped to the box of the training data, so that a
learned ratio stays what it was at the edge and growth beyond it is left to the analytical base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wattline.predictors.forest import Forest
from wattline.predictors.surrogate import Surrogate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


_CHUNK = 1024
"""Rows evaluated at once: their activations stay in a core's cache."""


def _add_to_diagonal(square: Array, value: float) -> None:
    """Add in place; what a diagonal matrix of its own would cost shows with hundreds of small fits."""
    square.flat[:: len(square) + 1] += value


def _median(values: Array) -> float:
    """The median; what numpy's takes beyond sorting shows with hundreds of small fits."""
    ordered, half = np.sort(values), len(values) // 2
    return float(ordered[half] if len(values) % 2 else 0.5 * (ordered[half - 1] + ordered[half]))


class Learner(Protocol):
    """What every learner does."""

    kind: str

    def predict(self, x: Array) -> Array:
        """One figure per row of standardised, clipped features ``(n, d)``."""
        ...

    def predict_one(self, row: Array) -> float:
        """The same for one row ``(d,)``."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its state as arrays."""
        ...


class Scaler:
    """Standardises features and clips them to the box of the training data."""

    def __init__(self, mean: Array, scale: Array, lo: Array, hi: Array) -> None:
        self.mean, self.scale, self.lo, self.hi = mean, scale, lo, hi
        self.factor = 1.0 / scale

    @classmethod
    def fit(cls, x: Array) -> Scaler:
        """From training features ``(n, d)``."""
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        z = (x - mean) / scale
        return cls(mean, scale, z.min(axis=0), z.max(axis=0))

    def leave(self, first: int) -> None:
        """Leave the columns from ``first`` on as they are."""
        self.mean[first:], self.scale[first:], self.factor[first:] = 0.0, 1.0, 1.0
        self.lo[first:], self.hi[first:] = 0.0, 1.0

    def mute(self, columns: list[int]) -> None:
        """Make columns zero, whatever they hold."""
        self.factor[columns], self.scale[columns] = 0.0, np.inf
        self.lo[columns], self.hi[columns] = 0.0, 0.0

    def __call__(self, *parts: Array) -> Array:
        """Clipped standardised features ``(n, d)``, from features in one or several parts, side by side."""
        # Columns lie together and new arrays are few: for many rows that is what takes the time.
        out = np.empty((len(self.mean), len(parts[0]))).T
        start = 0
        for x in parts:
            own = slice(start, start + x.shape[1])
            z = np.subtract(x, self.mean[own], out=out[:, own])
            z *= self.factor[own]
            np.maximum(z, self.lo[own], out=z)
            np.minimum(z, self.hi[own], out=z)
            start = own.stop
        return out

    def one(self, row: Array) -> Array:
        """The same of one row ``(d,)``."""
        return np.minimum(np.maximum((row - self.mean) * self.factor, self.lo), self.hi)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its state as arrays."""
        return {"mean": self.mean, "scale": self.scale, "lo": self.lo, "hi": self.hi}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Scaler:
        """From :meth:`arrays`."""
        return cls(*(np.asarray(a[k], np.float64) for k in ("mean", "scale", "lo", "hi")))


class Linear:
    """A ridge regression; with all weights zero, a constant."""

    kind = "linear"

    def __init__(self, weights: Array, bias: float) -> None:
        self.weights, self.bias = weights, float(bias)
        self._flat = not weights.any()

    @classmethod
    def constant(cls, y: Array, d: int) -> Linear:
        """The median of ``y``, whatever the features."""
        return cls(np.zeros(d), float(np.median(y)))

    @classmethod
    def fit(cls, x: Array, y: Array, penalty: float, columns: Sequence[int] | None = None) -> Linear:
        """Least squares with ``penalty * n`` on the squared weights; two robust reweightings tame outliers.

        Args:
            x: features ``(n, d)``.
            y: targets ``(n,)``.
            penalty: on the squared weights.
            columns: features that may have a weight; default all.
        """
        if columns is not None:
            part = cls.fit(x[:, columns], y, penalty)
            weights = np.zeros(x.shape[1])
            weights[columns] = part.weights
            return cls(weights, part.bias)
        weight = np.ones(len(y))
        w, bias = np.zeros(x.shape[1]), 0.0
        for _ in range(3):
            total = weight.sum()
            mx, my = weight @ x / total, float(weight @ y / total)
            xc = (x - mx) * weight[:, None]
            gram = xc.T @ (x - mx)
            _add_to_diagonal(gram, penalty * total)
            w = np.linalg.solve(gram, xc.T @ (y - my))
            bias = my - float(mx @ w)
            residual = np.abs(y - x @ w - bias)
            spread = 1.5 * _median(residual) + 1e-9
            weight = spread / np.maximum(residual, spread)
        return cls(w, bias)

    def predict(self, x: Array) -> Array:
        """See :meth:`Learner.predict`."""
        return np.full(len(x), self.bias) if self._flat else x @ self.weights + self.bias

    def predict_one(self, row: Array) -> float:
        """See :meth:`Learner.predict_one`."""
        return self.bias if self._flat else float(row @ self.weights) + self.bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Learner.arrays`."""
        return {"weights": self.weights, "bias": np.array([self.bias])}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Linear:
        """From :meth:`arrays`."""
        return cls(np.asarray(a["weights"], np.float64), float(a["bias"][0]))


class Gaussian:
    """A ridge regression plus a Gaussian process on what it leaves: the learner for a few hundred rows.

    The kernel is ``amplitude^2 exp(-r / length) (1 + r / length)`` (Matern 3/2) of the distance ``r`` between
    standardised features (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 4).
    """

    kind = "gaussian"

    def __init__(self, linear: Linear, points: Array, dual: Array, length: float) -> None:
        self.linear, self.points, self.dual, self.length = linear, points, dual, float(length)
        self._squares = (points**2).sum(axis=1)

    @staticmethod
    def distances(a: Array, b: Array) -> Array:
        """The distances, times the square root of 3, between rows of ``a`` and ``b``."""
        squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * (a @ b.T)
        return np.asarray(np.sqrt(3.0 * np.maximum(squares, 0.0)))

    @staticmethod
    def matern(distances: Array, length: float) -> Array:
        """The kernel of unit amplitude at :meth:`distances`."""
        r = distances / length
        return np.asarray((1.0 + r) * np.exp(-r))

    @classmethod
    def kernel(cls, a: Array, b: Array, length: float) -> Array:
        """The kernel of unit amplitude between rows of ``a`` and ``b``."""
        return cls.matern(cls.distances(a, b), length)

    @classmethod
    def fit(cls, x: Array, y: Array, penalty: float, length: float, noise: float) -> Gaussian:
        """Fit with a noise variance of ``noise`` times the signal's."""
        linear = Linear.fit(x, y, penalty)
        length = length * float(x.shape[1]) ** 0.5
        gram = cls.kernel(x, x, length)
        _add_to_diagonal(gram, noise)
        dual: Array = np.asarray(np.linalg.solve(gram, y - linear.predict(x)), np.float64)
        return cls(linear, x, dual, length)

    @classmethod
    def tried(
        cls, linear: Linear, known: tuple[Array, Array], asked: Array, lengths: Sequence[float], noises: Sequence[float]
    ) -> Array:
        """What :meth:`fit` with each of several lengths and noises would predict, with one set of distances for all.

        Args:
            linear: the ridge regression of the rows learned from.
            known: features ``(n, d)`` and targets ``(n,)`` of those rows.
            asked: features ``(m, d)`` of the rows to predict.
            lengths, noises: as :meth:`fit` takes them.

        Returns:
            Predictions of shape ``(lengths, noises, m)``.
        """
        x, y = known
        within, across = cls.distances(x, x), cls.distances(asked, x)
        start, residual = linear.predict(asked), (y - linear.predict(x))[:, None]
        out = np.empty((len(lengths), len(noises), len(asked)))
        for i, length in enumerate(lengths):
            scaled = length * float(x.shape[1]) ** 0.5
            kernel = cls.matern(across, scaled)
            grams = np.repeat(cls.matern(within, scaled)[None], len(noises), axis=0)
            for gram, noise in zip(grams, noises, strict=True):
                _add_to_diagonal(gram, noise)
            for j, dual in enumerate(np.linalg.solve(grams, residual[None])):
                out[i, j] = start + kernel @ dual[:, 0]
        return out

    def predict(self, x: Array) -> Array:
        """See :meth:`Learner.predict`."""
        out = self.linear.predict(x)
        for start in range(0, len(x), 4096):
            part = x[start : start + 4096]
            out[start : start + 4096] += self.kernel(part, self.points, self.length) @ self.dual
        return out

    def predict_one(self, row: Array) -> float:
        """See :meth:`Learner.predict_one`."""
        return float(self.predict(row[None, :])[0])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Learner.arrays`."""
        own = {"points": self.points, "dual": self.dual, "length": np.array([self.length])}
        return {**self.linear.arrays(), **own}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Gaussian:
        """From :meth:`arrays`."""
        points, dual = (np.asarray(a[k], np.float64) for k in ("points", "dual"))
        return cls(Linear.from_arrays(a), points, dual, float(a["length"][0]))


class Network:
    """A ridge regression plus the mean of small networks.

    Evaluated with plain numpy in float32: two hidden layers, ``x * sigmoid(x)`` between them.

    Attributes:
        layers: weights ``(networks, inputs, outputs)`` and biases ``(networks, 1, outputs)`` of each layer.
    """

    kind = "network"

    def __init__(self, linear: Linear, layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        self.linear = linear
        self.layers = [(np.ascontiguousarray(w, np.float32), np.ascontiguousarray(b, np.float32)) for w, b in layers]
        first, bias = self.layers[0]
        # All networks read the same inputs: their first layers are one matrix. Hidden layers are kept halved, as
        # x * sigmoid(x) is h + h * tanh(h) of h = x / 2: fewer passes over the activations, and no overflow.
        self._first = np.ascontiguousarray(0.5 * first.transpose(1, 0, 2).reshape(first.shape[1], -1))
        self._first_bias = np.ascontiguousarray(0.5 * bias.reshape(-1))
        half = np.float32(0.5)
        self._hidden = [(half * w, half * b) for w, b in self.layers[1:-1]]
        last, bias = self.layers[-1]
        self._last, self._last_bias = last.reshape(-1) / np.float32(len(last)), float(bias.mean())

    @staticmethod
    def _activate(h: NDArray[np.float32]) -> NDArray[np.float32]:
        """``2 h * sigmoid(2 h)``, in place."""
        gate = np.tanh(h)
        gate *= h
        h += gate
        return h

    def members(self, x: Array) -> Array:
        """What each network adds to the ridge regression: ``(networks, n)``."""
        count, width = self.layers[0][0].shape[0], self.layers[0][0].shape[2]
        h = x.astype(np.float32) @ self._first
        h += self._first_bias
        h = self._activate(h).reshape(len(x), count, width).transpose(1, 0, 2)
        for w, b in self._hidden:
            h = np.matmul(h, w)
            h += b
            h = self._activate(h)
        w, b = self.layers[-1]
        return np.asarray(np.matmul(h, w) + b, np.float64)[:, :, 0]

    def predict(self, x: Array) -> Array:
        """See :meth:`Learner.predict`."""
        out = self.linear.predict(x)
        count = len(self.layers[0][0])
        for start in range(0, len(x), _CHUNK):
            out[start : start + _CHUNK] += self.members(x[start : start + _CHUNK]).sum(axis=0) / count
        return out

    def predict_one(self, row: Array) -> float:
        """See :meth:`Learner.predict_one`."""
        h = row.astype(np.float32) @ self._first
        h += self._first_bias
        h = self._activate(h).reshape(len(self.layers[0][0]), 1, -1)
        for w, b in self._hidden:
            h = np.matmul(h, w)
            h += b
            h = self._activate(h)
        return self.linear.predict_one(row) + float(h.reshape(-1) @ self._last) + self._last_bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Learner.arrays`."""
        out = dict(self.linear.arrays())
        for i, (w, b) in enumerate(self.layers):
            out |= {f"w{i}": w, f"b{i}": b}
        return out

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Network:
        """From :meth:`arrays`."""
        depth = sum(1 for name in a if name.startswith("w") and name[1:].isdigit())
        return cls(Linear.from_arrays(a), [(a[f"w{i}"], a[f"b{i}"]) for i in range(depth)])


class Stacked:
    """A smooth learner, and trees for the steps that it smooths over.

    Attributes:
        smooth: what trees start from.
        forest: the trees.
    """

    kind = "stacked"

    def __init__(self, smooth: Linear | Network, forest: Forest) -> None:
        self.smooth, self.forest = smooth, forest

    def predict(self, x: Array) -> Array:
        """See :meth:`Learner.predict`."""
        return self.smooth.predict(x) + self.forest.predict(x)

    def predict_one(self, row: Array) -> float:
        """See :meth:`Learner.predict_one`."""
        return self.smooth.predict_one(row) + self.forest.predict_one(row)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Learner.arrays`."""
        return self.smooth.arrays() | {f"trees.{k}": v for k, v in self.forest.arrays().items()}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Stacked:
        """From :meth:`arrays`."""
        smooth: Linear | Network = Network.from_arrays(a) if "w0" in a else Linear.from_arrays(a)
        forest = Forest.from_arrays({k[6:]: v for k, v in a.items() if k.startswith("trees.")})
        width = len(a["weights"])
        if forest.feature.size and forest.feature.max() >= width:
            # Compiled loops do not look: a file must not make them read what is not theirs.
            raise ValueError(f"a tree asks for feature {forest.feature.max()} of {width}")
        return cls(smooth, forest)


class Averaged:
    """The mean of several learners: what they agree on carries over, what one of them made up is diluted.

    Attributes:
        parts: the learners.
    """

    kind = "averaged"

    def __init__(self, parts: Sequence[Linear | Gaussian | Network | Stacked | Surrogate]) -> None:
        self.parts = list(parts)

    def predict(self, x: Array) -> Array:
        """See :meth:`Learner.predict`."""
        return np.asarray(np.mean([part.predict(x) for part in self.parts], axis=0))

    def predict_one(self, row: Array) -> float:
        """See :meth:`Learner.predict_one`."""
        return sum(part.predict_one(row) for part in self.parts) / len(self.parts)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Learner.arrays`."""
        return {f"{i}.{p.kind}.{k}": v for i, p in enumerate(self.parts) for k, v in p.arrays().items()}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Averaged:
        """From :meth:`arrays`."""
        found: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
        for name, array in a.items():
            place, kind, own = name.split(".", 2)
            found.setdefault((place, kind), {})[own] = array
        return cls([KINDS[kind].from_arrays(found[place, kind]) for place, kind in sorted(found)])


KINDS: dict[str, Any] = {
    "averaged": Averaged, "linear": Linear, "gaussian": Gaussian, "network": Network, "process": Surrogate,
    "stacked": Stacked,
}  # fmt: skip
"""Learners by the name that a bundle gives them."""
