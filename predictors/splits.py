"""Honest splits: what is left out is what a user would ask about, not a neighbour of what was trained on.

A random row split of a dense grid leaks: every test row has neighbours in the training rows, and the score says how
well the table is interpolated. These splitters leave out whole devices, whole groups (shapes, models) or all that is
larger than something, in scikit-learn's manners (``split(X, y, groups)`` yields pairs of position arrays).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import DataError, ParamError
from wattline.predictors.training import group_folds

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


class LeaveOneDeviceOut:
    """Each device in turn is the test set. Answers: how good is a prediction for a device that nobody measured?

    Args:
        column: the column of ``X`` that names the device.
    """

    def __init__(self, column: str = "device") -> None:
        self.column = column

    def get_n_splits(self, X: pd.DataFrame, y: Any = None, groups: Any = None) -> int:
        """The number of devices."""
        return int(X[self.column].nunique())

    def split(self, X: pd.DataFrame, y: Any = None, groups: Any = None) -> Iterator[Pair]:
        """Yield (train, test) positions, devices in alphabetical order.

        Raises:
            DataError: fewer than two devices.
        """
        device = X[self.column].astype(str).to_numpy()
        names = np.unique(device)
        if len(names) < 2:
            raise DataError(
                "leaving a device out needs at least two", why=f"the rows have {', '.join(names) or 'none'}"
            )
        for name in names:
            yield np.flatnonzero(device != name), np.flatnonzero(device == name)


class LeaveGroupsOut:
    """Folds of whole groups (shapes, models, layers). Answers: how good is a kernel of a shape not yet measured?

    Folds have about equal numbers of rows, and every row is tested once.

    Args:
        n_splits: number of folds.
        random_state: seed of the order in which equally large groups are dealt.
    """

    def __init__(self, n_splits: int = 5, *, random_state: int = 0) -> None:
        self.n_splits = n_splits
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """The number of folds."""
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[Pair]:
        """Yield (train, test) positions.

        Raises:
            DataError: no groups, or fewer than folds.
            ParamError: fewer than two folds asked for.
        """
        if self.n_splits < 2:
            raise ParamError(f"n_splits must be at least 2, not {self.n_splits}")
        if groups is None:
            raise DataError("LeaveGroupsOut needs groups", todo="give a label per row, as from_run returns it")
        labels = np.asarray(groups)
        found = len(np.unique(labels))
        if found < self.n_splits:
            raise DataError(
                f"{self.n_splits} folds of whole groups need at least as many groups", why=f"there are {found}"
            )
        fold = group_folds(labels, self.n_splits, self.random_state)
        for f in range(self.n_splits):
            yield np.flatnonzero(fold != f), np.flatnonzero(fold == f)


class Frontier:
    """Train on the small, test on the large. Answers: how good is a prediction beyond what was measured?

    Args:
        column: the column of ``X`` whose values are compared, e.g. ``"m"`` or ``"bytes"``.
        limit: the largest value trained on; or
        share: the quantile of the column that is trained on, where no limit is given.
    """

    def __init__(self, column: str, *, limit: float | None = None, share: float = 0.75) -> None:
        self.column = column
        self.limit = limit
        self.share = share

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """One."""
        return 1

    def split(self, X: pd.DataFrame, y: Any = None, groups: Any = None) -> Iterator[Pair]:
        """Yield the one pair of positions; rows without the column are trained on.

        Raises:
            DataError: no such column, or one side would be empty.
        """
        if self.column not in X.columns:
            raise DataError(f"X has no column {self.column}")
        value = X[self.column].to_numpy(dtype=float, na_value=np.nan)
        limit = np.nanquantile(value, self.share) if self.limit is None else self.limit
        test = value > limit
        if not test.any() or test.all():
            raise DataError(f"no frontier at {self.column} = {limit:g}", why="one side of it would be empty")
        yield np.flatnonzero(~test), np.flatnonzero(test)
