"""What a sensor shows of a load that is switched on and off: averaging window, lag, rise time.

A power sensor is taken for a boxcar: at an update at time ``u`` it shows the mean of the power between
``u - lag - window`` and ``u - lag``, and holds it for a period. (That NVIDIA boards do so was found with square waves
and an external meter by Yang, Adamek and Armour, arXiv:2312.02741.) Where the readings ask for it, a low-pass of the
first order stands before the window: the capacitors of the board, and older sensors. A counter is the same when its
increments are divided by the time between them: its window is then the part of each period that it sees.

All times are seconds, all arrays one-dimensional float64 of equal length. Nothing here reads a sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from wattline.collectors.energy.fits import Estimate
from wattline.errors import DataError

if TYPE_CHECKING:
    from wattline.collectors.energy.fits import Array


@dataclass
class Switching:
    """When the load was switched, as a wave of 0 (off) and 1 (on), off before the first switch.

    Attributes:
        times: when each switch took effect, rising.
        levels: the load from then on.
    """

    times: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)

    def add(self, time_s: float, level: float) -> None:
        """Append a switch; one that changes nothing is left out."""
        if level != (self.levels[-1] if self.levels else 0.0):
            self.times.append(max(time_s, self.times[-1]) if self.times else time_s)
            self.levels.append(level)

    def on_time(self, at: Array, tau_s: float = 0.0) -> Array:
        """Integral of the wave from its first switch to each time, any shape; seconds.

        Args:
            at: times.
            tau_s: time constant of a low-pass that the wave goes through first. From y' = (x - y) / tau, the
                integral of y is that of x less tau times y.
        """
        if not self.times:
            return np.zeros_like(at)
        levels = np.array(self.levels)
        knots = np.array([*self.times, self.times[-1] + 1e6])
        total: Array = np.interp(at, knots, np.concatenate([[0.0], np.cumsum(np.diff(knots) * levels)]))
        if tau_s <= 0:
            return total
        start = [0.0]  # the low-passed wave at each switch
        for level, kept in zip(self.levels[:-1], np.exp(-np.diff(self.times) / tau_s), strict=True):
            start.append(level + (start[-1] - level) * float(kept))
        k = np.searchsorted(knots[:-1], at, side="right") - 1
        smooth = levels[k] + (np.array(start)[k] - levels[k]) * np.exp(-np.maximum(at - knots[k], 0.0) / tau_s)
        return np.asarray(total - tau_s * np.where(k >= 0, smooth, 0.0))


def boxcar(wave: Switching, at: Array, window_s: Array, lag_s: Array, tau_s: float = 0.0) -> Array:
    """Mean of the wave over the window that ended a lag before each time.

    Args:
        wave: the load.
        at: times, shape (n,).
        window_s: above 0, shape (m,).
        lag_s: shape (m,).
        tau_s: time constant of a low-pass before the window.

    Returns:
        Shape (m, n), between 0 and 1.
    """
    end = at[None, :] - lag_s[:, None]
    mean: Array = (wave.on_time(end, tau_s) - wave.on_time(end - window_s[:, None], tau_s)) / window_s[:, None]
    return mean


@dataclass(frozen=True)
class BoxcarFit:
    """The boxcar that explains the values at the updates best.

    Attributes:
        window: averaging window, seconds.
        lag: from the end of the window to the update, seconds; not below 0.
        tau_s: time constant of the low-pass before the window; 0 where the values do not ask for one.
        base: the value without load.
        step: what the load adds.
        r2: share of the values' variance that it explains.
        noise: standard deviation of what is left, in the values' unit.
    """

    window: Estimate
    lag: Estimate
    tau_s: float
    base: float
    step: float
    r2: float
    noise: float


@dataclass(frozen=True)
class _Point:
    """One set of parameters and the sum of squares that it leaves."""

    left: float
    window_s: float
    lag_s: float
    tau_s: float = 0.0


@dataclass(frozen=True)
class _Search:
    """What a fit looks at, and how far it may go."""

    at: Array
    value: Array
    wave: Switching
    blur_s: float
    longest_s: float
    lag_limit_s: float

    @property
    def shortest_s(self) -> float:
        return max(0.25 * self.blur_s, 1e-5)

    def residue(self, window_s: Array, lag_s: Array, tau_s: float) -> Array:
        """Squares left by value = base + step * boxcar with the best base and step > 0, for each pair; shape (m,)."""
        shape = boxcar(self.wave, self.at, window_s, lag_s, tau_s)
        shape = shape - shape.mean(axis=1, keepdims=True)
        centred = self.value - self.value.mean()
        spread = np.sum(shape**2, axis=1)
        shared = np.maximum(shape @ centred, 0.0)
        gained = np.divide(shared**2, spread, out=np.zeros_like(spread), where=spread > 1e-12)
        return np.asarray(np.sum(centred**2) - gained)

    def anywhere(self) -> _Point:
        """The best without a low-pass on a coarse grid over everything allowed."""
        best = _Point(np.inf, self.shortest_s, 0.0)
        for window in np.geomspace(self.shortest_s, self.longest_s, 48):
            lags = np.arange(0.0, self.lag_limit_s + 1e-9, max(window / 4, self.lag_limit_s / 400))
            left = self.residue(np.full_like(lags, window), lags, 0.0)
            k = int(np.argmin(left))
            best = min(best, _Point(float(left[k]), float(window), float(lags[k])), key=lambda p: p.left)
        return best

    def near(self, start: _Point, tau_s: float) -> _Point:
        """The best window and lag around a start for one time constant, on ever smaller grids."""
        window, lag, left_over = max(start.window_s - 2 * (tau_s - start.tau_s), self.shortest_s), start.lag_s, np.inf
        reach_w = 0.2 * start.window_s + 2 * abs(tau_s - start.tau_s)
        reach_l = max(0.3 * start.window_s, self.lag_limit_s / 400)
        for _ in range(14):
            w, late = np.meshgrid(
                np.clip(window + reach_w * np.linspace(-1, 1, 7), self.shortest_s, self.longest_s),
                # Below zero by what the clock of the edges may be off: clipped in the result only.
                np.maximum(lag + reach_l * np.linspace(-1, 1, 7), -self.blur_s),
            )
            left = self.residue(w.ravel(), late.ravel(), tau_s)
            k = int(np.argmin(left))
            left_over, window, lag = float(left[k]), float(w.ravel()[k]), float(late.ravel()[k])
            reach_w, reach_l = 0.6 * reach_w, 0.6 * reach_l
        return _Point(left_over, window, lag, tau_s)

    def smoothed(self, plain: _Point) -> _Point:
        """The best with a low-pass, or ``plain`` where the low-pass explains no more than chance would."""
        best = plain
        for tau in np.geomspace(0.5 * self.blur_s, max(2 * self.blur_s, 2 * plain.window_s), 9):
            best = min(best, self.near(plain, float(tau)), key=lambda p: p.left)
        for factor in (1.4, 1.15):
            for tau in (best.tau_s / factor, best.tau_s * factor) if best.tau_s else ():
                best = min(best, self.near(best, tau), key=lambda p: p.left)
        # Schwarz's criterion, with some reserve for the blur of the edges, which is not quite noise.
        gain = len(self.at) * np.log(max(plain.left, 1e-300) / max(best.left, 1e-300))
        return best if gain > 3 * np.log(len(self.at)) else plain


def fit_boxcar(
    at: Array, value: Array, wave: Switching, *, blur_s: float, longest_s: float = 3.0, lag_limit_s: float = 0.5
) -> BoxcarFit:
    """Window and lag by least squares: a search over the whole range, then ever closer around the best.

    Args:
        at: times of updates, shape (n,), n at least 8.
        value: watts shown from then on, shape (n,).
        wave: the load.
        blur_s: how well the times are known; no window is sought below a quarter of it.
        longest_s: longest window that is sought.
        lag_limit_s: longest lag that is sought.

    Raises:
        DataError: fewer than eight updates, or the values do not move with the load.
    """
    if len(at) < 8:
        raise DataError("no averaging window can be told", why=f"only {len(at)} updates were seen")
    search = _Search(at, value, wave, blur_s, longest_s, lag_limit_s)
    best = search.smoothed(search.near(search.anywhere(), 0.0))
    shape = boxcar(wave, at, np.array([best.window_s]), np.array([best.lag_s]), best.tau_s)[0]
    total = float(np.sum((value - value.mean()) ** 2))
    if total <= 0 or np.ptp(shape) == 0 or best.left >= 0.8 * total:
        raise DataError("no averaging window can be told", why="the reading does not move with the load")
    step, base = np.polyfit(shape, value, 1)
    noise = float(np.sqrt(best.left / max(len(at) - 4, 1)))
    window_error, lag_error = _errors(search, best, float(step), noise)
    return BoxcarFit(
        Estimate(best.window_s, window_error), Estimate(max(best.lag_s, 0.0), lag_error), best.tau_s, float(base),
        float(step), 1 - best.left / total, noise,
    )  # fmt: skip


def _errors(search: _Search, best: _Point, step: float, noise: float) -> tuple[float, float]:
    """Standard errors of window and lag from the curvature at the best fit."""
    h, window, lag, tau = 0.05 * best.window_s, best.window_s, best.lag_s, best.tau_s

    def shapes(windows: Sequence[float], lags: Sequence[float], tau_s: float) -> Array:
        return boxcar(search.wave, search.at, np.array(windows), np.array(lags), tau_s)

    around = shapes([window, window + h, window - h, window, window], [lag, lag, lag, lag + h, lag - h], tau)
    columns = [
        np.ones_like(search.at), around[0], step * (around[1] - around[2]) / (2 * h),
        step * (around[3] - around[4]) / (2 * h),
    ]  # fmt: skip
    if tau:
        more, less = shapes([window], [lag], 1.05 * tau)[0], shapes([window], [lag], 0.95 * tau)[0]
        columns.append(step * (more - less) / (0.1 * tau))
    slopes = np.stack(columns, axis=1)
    try:
        spread = np.diag(np.linalg.inv(slopes.T @ slopes)) * noise**2
    except np.linalg.LinAlgError:  # no update fell on a slope: nothing bounds them
        return float("inf"), float("inf")
    return float(np.sqrt(max(spread[2], 0.0))), float(np.sqrt(max(spread[3], 0.0)))


def rise_time(at: Array, value: Array, wave: Switching, fit: BoxcarFit, *, share: float = 0.9) -> Estimate | None:
    """Time from a switch until the sensor shows that share of the step; no shape is assumed.

    The updates after all switches that met a settled sensor are laid over one another by the time since the switch
    (off-switches mirrored), made to rise by isotonic regression, and the crossing is read off. How long a value is
    held is not in it: a reader may see it up to a period later.

    Args:
        at: times of updates, shape (n,).
        value: what was shown, shape (n,).
        wave: the load, of levels 0 and 1.
        fit: says what is settled, and the two levels.
        share: of the step.

    Returns:
        The crossing, and half the distance between the updates around it; ``None`` where there were too few.
    """
    times, settle = np.array(wave.times), 1.1 * fit.window.value + 5 * fit.tau_s
    since, height = [], []
    for k, switched in enumerate(times):
        before = switched - times[k - 1] if k else np.inf
        after = times[k + 1] if k + 1 < len(times) else np.inf
        if before < settle:
            continue
        # The next switch shows one lag late.
        picked = (at >= switched) & (at < min(after + fit.lag.value, switched + 3 * (settle + fit.lag.value)))
        level = (value[picked] - fit.base) / fit.step
        since.append(at[picked] - switched)
        height.append(level if wave.levels[k] else 1 - level)
    if not since:
        return None
    delay, shown = np.concatenate(since), np.concatenate(height)
    order = np.argsort(delay)
    delay, shown = delay[order], _rising(shown[order])
    after_it = np.flatnonzero(shown >= share)
    if len(delay) < 12 or not len(after_it) or after_it[0] == 0:
        return None
    k = int(after_it[0])
    # Blocks of equal height stand for their whole span: take the middle of the one below, and the edge above.
    low, high = float(shown[k - 1]), float(shown[k])
    part = (share - low) / (high - low) if high > low else 0.5
    return Estimate(float(delay[k - 1] + part * (delay[k] - delay[k - 1])), 0.5 * float(delay[k] - delay[k - 1]))


def _rising(values: Array) -> Array:
    """The closest rising sequence in least squares: pool adjacent violators."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            total = sizes[-2] + sizes[-1]
            mean = (means[-2] * sizes[-2] + means[-1] * sizes[-1]) / total
            means[-2:], sizes[-2:] = [mean], [total]
    return np.repeat(means, sizes)
