"""The sampler: what it proposes, what it says of the error, and the process that it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import DataError, ParamError, UnknownNameError
from wattline.predictors.active import FEWEST_JUDGED, Sampler
from wattline.predictors.surrogate import Surrogate

TableOf = Callable[..., Any]


@pytest.fixture(scope="module")
def grid(table_of: TableOf) -> Any:
    return table_of(400, 5)


def sampler_of(table: Any, seed: int = 0, rows: int | None = None) -> Sampler:
    X = table.X if rows is None else table.X.head(rows)
    return Sampler(X, {table.spec.id: table.spec}, seed=seed)


def measure(sampler: Sampler, times: Any, most: int, count: int = 16) -> Any:
    rows = np.empty(0, np.int64)
    while len(rows) < most:
        rows = np.concatenate([rows, sampler.next(rows, times[rows], count)])
    return rows


@settings(max_examples=12)
@given(st.integers(0, 60), st.integers(0, 10), st.integers(1, 40), st.integers(0, 3))
def test_what_is_proposed_is_new_within_the_count_and_the_same_again(
    grid: Any, measured: int, lost: int, count: int, seed: int
) -> None:
    times = grid.y["time_s"].to_numpy()[:80]
    sampler = sampler_of(grid, seed, 80)
    order = np.random.default_rng(seed).permutation(80)
    done, gone = order[:measured], order[measured : measured + lost]
    batch = sampler.next(done, times[done], count, lost=gone)
    assert len(batch) == len(set(batch.tolist())) == min(count, 80 - measured - lost)
    assert not set(batch.tolist()) & {*done.tolist(), *gone.tolist()}
    again = sampler_of(grid, seed, 80).next(done, times[done], count, lost=gone)
    np.testing.assert_array_equal(batch, again)


def test_all_candidates_are_proposed_in_the_end_and_then_none(grid: Any) -> None:
    times = grid.y["time_s"].to_numpy()[:50]
    sampler = sampler_of(grid, rows=50)
    rows = measure(sampler, times, 50)
    assert sorted(rows.tolist()) == list(range(50))
    assert len(sampler.next(rows, times[rows], 4)) == 0
    found = sampler.held_out(rows, times[rows])
    assert found is not None
    assert found.judged == found.rows == 50


def test_another_seed_chooses_others(grid: Any) -> None:
    first, second = (sampler_of(grid, seed).next([], [], 20) for seed in (0, 1))
    assert set(first.tolist()) != set(second.tolist())


def test_the_first_batch_holds_every_format(grid: Any) -> None:
    batch = sampler_of(grid).next([], [], 12)
    assert set(grid.X["dtype"].iloc[batch]) == {"fp32", "bf16"}


def test_it_learns_from_fewer_rows_than_random_order(table_of: TableOf) -> None:
    """Nine of ten candidates are alike: random rows look at them again and again."""
    table = table_of(200, 8)
    many = table.X.iloc[np.r_[np.arange(40), np.resize(np.arange(160, 164), 360)]].reset_index(drop=True)
    times = np.r_[table.y["time_s"].to_numpy()[:40], np.resize(table.y["time_s"].to_numpy()[160:164], 360)]
    sampler = Sampler(many, {table.spec.id: table.spec}, groups=np.arange(len(many)))
    rows = measure(sampler, times, 48)
    assert np.sum(np.asarray(rows[:48]) < 40) > 2 * np.sum(sampler.order[:48] < 40)


def test_cheap_rows_come_first_where_the_rest_is_equal(grid: Any) -> None:
    times = grid.y["time_s"].to_numpy()
    sampler = sampler_of(grid)
    done = sampler.order[:40]
    free = sampler.next(done, times[done], 60)
    dear = sampler.next(done, times[done], 60, walls_s=0.01 + 1e5 * times[done])
    assert times[dear].sum() < 0.7 * times[free].sum()


def test_judged_rows_are_the_measured_prefix_of_the_random_order(grid: Any) -> None:
    sampler = sampler_of(grid)
    order = sampler.order
    assert sampler.judged(order[:5]).tolist() == order[:5].tolist()
    assert sampler.judged([*order[:5], order[6]]).tolist() == order[:5].tolist()
    assert sampler.judged([*order[:5], order[6]], lost=[order[5]]).tolist() == [*order[:5], order[6]]
    assert len(sampler.judged(order[3:9])) == 0
    times = grid.y["time_s"].to_numpy()
    few = order[: FEWEST_JUDGED - 1]
    assert sampler.held_out(few, times[few]) is None


def test_the_held_out_error_is_that_on_the_rest(grid: Any) -> None:
    times = grid.y["time_s"].to_numpy()
    sampler = sampler_of(grid)
    rows = measure(sampler, times, 160)
    found = sampler.held_out(rows, times[rows])
    assert found is not None
    rest = np.setdiff1d(np.arange(len(times)), rows)
    true = float(np.mean(np.abs(sampler.predict(rows, times[rows])[rest] / times[rest] - 1)))
    assert found.error < found.upper
    assert true < found.upper + 0.02
    assert abs(found.error - true) < 0.03
    assert "confidence" in str(found)


def test_several_families_share_a_batch(table_of: TableOf) -> None:
    table = table_of(60, 3)
    other = pd.DataFrame({"op": "softmax.rows", "device": "box", "impl": "torch", "dtype": "fp32",
                          "rows": 2.0 ** np.arange(3, 15), "cols": 1024.0})  # fmt: skip
    X = pd.concat([table.X, other], ignore_index=True)
    times = np.r_[table.y["time_s"].to_numpy(), 1e-5 + 8e3 * other["rows"].to_numpy() / 1e12]
    sampler = Sampler(X, {"box": table.spec})
    rows = measure(sampler, times, 36, 12)
    assert set(X["op"].iloc[rows]) == {"gemm.dense", "softmax.rows"}
    assert np.isfinite(sampler.predict(rows, times[rows])).all()


def test_faults_are_told(grid: Any) -> None:
    sampler = sampler_of(grid)
    with pytest.raises(ParamError, match="at least one row"):
        sampler.next([], [], 0)
    with pytest.raises(DataError, match="2 measured rows and 1 times"):
        sampler.next([0, 1], [1e-3], 4)
    with pytest.raises(DataError, match="none of the 400"):
        sampler.next([400], [1e-3], 4)
    with pytest.raises(DataError, match="above zero"):
        sampler.next([0], [0.0], 4)
    with pytest.raises(DataError, match="no candidate"):
        Sampler(grid.X.head(0), {"box": grid.spec})
    with pytest.raises(UnknownNameError, match="device"):
        Sampler(grid.X.assign(device="nowhere"))
    with pytest.raises(DataError, match="groups has 1"):
        Sampler(grid.X, {"box": grid.spec}, groups=[1])


def test_left_out_residuals_are_those_of_learning_without_the_group() -> None:
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(24, 3)), np.repeat(np.arange(8), 3)
    y = np.sin(x[:, 0]) + 0.1 * rng.normal(size=24)
    y -= y.mean()
    y /= y.std()  # so that leaving rows out moves neither mean nor scale of what is left
    whole = Surrogate(Surrogate.usual(3)).learn(x, y)
    found = whole.left_out(groups)
    for group in range(8):
        rest = groups != group
        gram = whole.kernel(x[rest], x[rest]) + whole.noise * np.eye(21)
        expected = whole.kernel(x[~rest], x[rest]) @ np.linalg.solve(gram, y[rest])
        np.testing.assert_allclose(found[~rest], y[~rest] - expected, atol=1e-9)


def test_the_process_of_one_row_by_hand() -> None:
    """k(0, 0) = 0.7 + 1 and noise 0.01: the mean at the row shrinks by 1.7 / 1.71."""
    process = Surrogate(Surrogate.usual(1))
    process.mean, process.scale = 0.0, 1.0
    assert process.kernel(np.zeros((1, 1)), np.zeros((1, 1)))[0, 0] == pytest.approx(1.7)
    distant = process.kernel(np.zeros((1, 1)), np.array([[1.5]]))[0, 0]  # one length away: r = sqrt(3)
    assert distant == pytest.approx(1.0 + 0.7 * (1 + 3**0.5) * np.exp(-(3**0.5)))


def test_the_gradient_of_the_likelihood_is_that_of_differences() -> None:
    from wattline.predictors.surrogate import _likelihood

    rng = np.random.default_rng(1)
    x = rng.normal(size=(15, 3))
    y = np.sin(x[:, 0]) + 0.1 * rng.normal(size=15)
    usual = Surrogate.usual(3)
    theta = usual + 0.3 * rng.normal(size=6)
    _, gradient = _likelihood(theta, x, y, usual)
    for i in range(6):
        step = np.zeros(6)
        step[i] = 1e-5
        up, down = (_likelihood(theta + sign * step, x, y, usual)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-6)
