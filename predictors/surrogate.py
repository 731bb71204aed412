"""A Gaussian process with a length for each feature, which also says how unsure it is.

It is the learner for some dozens to some hundreds of rows, what few rows of a new device are learned with, and what the
sampler of :mod:`wattline.predictors.active` asks.

The kernel is ``a^2 (1 + r) exp(-r) + b^2 sum_d x_d x'_d / l_d^2 + c^2``, a Matern 3/2 of the distance
``r^2 = 3 sum_d (x_d - x'_d)^2 / l_d^2`` with a length ``l_d`` of each feature, a linear part and a constant
(C. Rasmussen and C. Williams, Gaussian Processes for Machine Learning, 2006, sections 4.2 and 5.1). Lengths,
amplitudes and noise are those of the greatest marginal likelihood, pulled weakly towards usual ones, so that a few
dozen rows do not make a feature all-important by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST_FITTED = 400
"""Rows that lengths are fitted on: the time grows with their cube, and their values settle long before."""
_CONSTANT = 1.0
_PRIOR_SPREAD = 1.0
"""Standard deviation of the logarithm of every length and amplitude around its usual value."""
_LIMIT = 7.0
_OTHERS = 3
"""Hyperparameters beside the lengths."""


class Surrogate:
    """Gaussian process regression of standardised features.

    Attributes:
        lengths: by feature ``(d,)``.
        amplitude, linear, noise: variances, relative to that of the targets.
        mean, scale: of the targets.
        x: the rows that it has learned ``(n, d)``.
        dual: their weights ``(n,)``.
    """

    kind = "process"

    def __init__(self, theta: Array) -> None:
        self.theta = theta
        values = np.exp(np.clip(theta, -_LIMIT - 5, _LIMIT))
        self.lengths, (self.amplitude, self.linear, self.noise) = values[:-_OTHERS], values[-_OTHERS:]
        self.mean, self.scale = 0.0, 1.0
        self.x: Array = np.empty((0, len(self.lengths)))
        self.factor: Array = np.empty((0, 0))
        self._weigh(np.empty(0))

    @staticmethod
    def usual(d: int) -> Array:
        """The logarithms of lengths, amplitude, linear part and noise before anything is known, ``(d + 3,)``."""
        return np.append(np.full(d, np.log(1.5 * np.sqrt(d))), np.log([0.7, 0.5, 0.01]))

    @classmethod
    def fit(
        cls, x: Array, y: Array, *, start: Array | None = None, seed: int = 0, steps: int = 40, most: int = MOST_FITTED
    ) -> Surrogate:
        """Find lengths and learn rows.

        Args:
            x: standardised features ``(n, d)``.
            y: targets ``(n,)``.
            start: ``theta`` to begin at, such as that of an earlier fit.
            seed: of the rows that lengths are fitted on, where there are more than ``most``.
            steps: of the search.
            most: rows that lengths are fitted on.
        """
        from scipy.optimize import minimize

        mean, scale = float(y.mean()), float(y.std()) or 1.0
        rows = np.random.default_rng(seed).permutation(len(y))[:most]
        part, target, usual = x[rows], (y[rows] - mean) / scale, cls.usual(x.shape[1])
        begin = usual if start is None else start
        found = minimize(
            _likelihood, begin, args=(part, target, usual), jac=True, method="L-BFGS-B", options={"maxiter": steps},
            bounds=[(-_LIMIT, _LIMIT)] * len(usual),
        )  # fmt: skip
        return cls(np.asarray(found.x, np.float64)).learn(x, y)

    def learn(self, x: Array, y: Array) -> Surrogate:
        """Learn rows with the lengths as they are; returns itself."""
        self.x, self.mean, self.scale = x, float(y.mean()), float(y.std()) or 1.0
        gram = self.kernel(x, x)
        gram[np.diag_indices_from(gram)] += self.noise
        self.factor = np.asarray(np.linalg.cholesky(gram), np.float64)
        self._weigh(self._solve((y - self.mean) / self.scale))
        return self

    def _weigh(self, dual: Array) -> None:
        """Take weights, and what of a prediction does not depend on distances."""
        self.dual = dual
        self._points = self.x / self.lengths
        self._squares = (self._points**2).sum(axis=1)
        self._slopes = self.linear * (dual @ self._points)
        self._level = _CONSTANT * float(dual.sum())

    def kernel(self, a: Array, b: Array) -> Array:
        """Prior covariances of rows ``(n, d)`` and ``(m, d)``, relative to the variance of the targets."""
        u, v = a / self.lengths, b / self.lengths
        product = u @ v.T
        r = np.sqrt(3.0 * np.maximum((u**2).sum(1)[:, None] + (v**2).sum(1) - 2.0 * product, 0.0))
        return np.asarray(self.amplitude * (1.0 + r) * np.exp(-r) + self.linear * product + _CONSTANT)

    def prior_variance(self, x: Array) -> Array:
        """The diagonal of :meth:`kernel` ``(n,)``."""
        return np.asarray(self.amplitude + self.linear * ((x / self.lengths) ** 2).sum(axis=1) + _CONSTANT)

    def predict(self, x: Array) -> Array:
        """The expected target of rows ``(n, d)``."""
        out = np.empty(len(x))
        for start in range(0, len(x), 4096):
            u = x[start : start + 4096] / self.lengths
            squares = (u**2).sum(axis=1)[:, None] + self._squares - 2.0 * (u @ self._points.T)
            out[start : start + 4096] = self._weighted(squares) + u @ self._slopes
        return self.mean + self.scale * (out + self._level)

    def predict_one(self, row: Array) -> float:
        """The same of one row ``(d,)``."""
        u = row / self.lengths
        squares = float(u @ u) + self._squares - 2.0 * (self._points @ u)
        return self.mean + self.scale * (float(self._weighted(squares)) + float(u @ self._slopes) + self._level)

    def _weighted(self, squares: Array) -> Any:
        """The Matern part at squared distances from the rows learned: their weighted sum."""
        r = np.sqrt(3.0 * np.maximum(squares, 0.0))
        return self.amplitude * (((1.0 + r) * np.exp(-r)) @ self.dual)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What predictions need; how unsure they are is not kept."""
        return {"theta": self.theta, "rows": self.x, "dual": self.dual, "scaling": np.array([self.mean, self.scale])}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Surrogate:
        """From :meth:`arrays`.

        Raises:
            ValueError: the arrays do not fit each other.
        """
        theta, rows, dual = (np.asarray(a[name], np.float64) for name in ("theta", "rows", "dual"))
        if rows.shape != (len(dual), len(theta) - _OTHERS):
            raise ValueError(f"{len(theta) - _OTHERS} lengths and {len(dual)} weights for rows of shape {rows.shape}")
        out = cls(theta)
        out.x, (out.mean, out.scale) = rows, a["scaling"].tolist()
        out._weigh(dual)
        return out

    def whitened(self, x: Array) -> Array:
        """``L^-1 k(X, x)``, ``(n, m)``: posterior covariances are ``k(x, z) - whitened(x).T @ whitened(z)``."""
        from scipy.linalg import solve_triangular

        if not len(self.x):
            return np.empty((0, len(x)))
        return np.asarray(solve_triangular(self.factor, self.kernel(self.x, x), lower=True, check_finite=False))

    def left_out(self, groups: NDArray[Any]) -> Array:
        """What is left of each target when its whole group is left out ``(n,)``: target less prediction.

        The lengths are kept. Exact without learning anew: with ``K`` the covariance of the rows and noise, the
        residuals of a group are ``((K^-1)_gg)^-1 (K^-1 y)_g`` (Rasmussen and Williams, section 5.4.2, for groups).
        """
        inverse = self._solve(np.eye(len(self.x)))
        out = np.empty(len(self.x))
        _, codes = np.unique(groups, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
            out[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], self.dual[rows])
        return out * self.scale

    def _solve(self, right: Array) -> Array:
        from scipy.linalg import cho_solve

        return np.asarray(cho_solve((self.factor, True), right, check_finite=False))


def _likelihood(theta: Array, x: Array, y: Array, usual: Array) -> tuple[float, Array]:
    """Minus the logarithm of the marginal likelihood and of the prior of ``theta``, and its gradient.

    The gradient is ``sum(W * dK) / 2`` with ``W = K^-1 - K^-1 y y' K^-1`` (Rasmussen and Williams, equation 5.9).
    """
    from scipy.linalg import cho_solve

    n = len(y)
    away = (theta - usual) / _PRIOR_SPREAD
    lengths, (amplitude, linear, noise) = np.exp(theta[:-_OTHERS]), np.exp(theta[-_OTHERS:])
    u = x / lengths
    product = u @ u.T
    squares = np.diag(product)
    r = np.sqrt(3.0 * np.maximum(squares[:, None] + squares - 2.0 * product, 0.0))
    decay = np.exp(-r)
    matern = amplitude * (1.0 + r) * decay
    gram = matern + linear * product + _CONSTANT
    gram[np.diag_indices(n)] += noise
    try:
        factor = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return 1e12, np.zeros_like(theta)
    inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
    dual = inverse @ y
    value = 0.5 * float(y @ dual) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(away @ away)
    w = inverse - np.outer(dual, dual)
    near = w * (3.0 * amplitude * decay)  # dK / d log l_d = 3 a^2 exp(-r) (u_d - u'_d)^2 for the Matern part
    by_length = near.sum(axis=1) @ (u**2) - np.einsum("id,id->d", u, near @ u)
    by_length -= linear * np.einsum("id,id->d", u, w @ u)
    rest = np.array([0.5 * (w * matern).sum(), 0.5 * linear * (w * product).sum(), 0.5 * noise * np.trace(w)])
    return value, np.append(by_length, rest) + away / _PRIOR_SPREAD
