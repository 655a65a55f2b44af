"""Computes the weight of each row of a weighted subset, and how often the row is shown in each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.comparisons import as_doubles
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import RowIndices, RowMask
from pairmill.pipeline.select.keys import REPEAT, uid_hashes
from pairmill.pipeline.select.outputs import Array

Weights = npt.NDArray[np.float32]
"""How often each row is shown per epoch on average; shape (rows,)."""
Draws = npt.NDArray[np.uint32]
"""A hash of each row's uid; shape (rows,)."""

TICK = 2.0**-20
"""Weights are summed in multiples of this unit, so that the sum does not depend on the order of addition."""


def draws_of(uids: pa.ChunkedArray) -> Draws:
    """The hash of each row's uid that decides in which epochs the row's weight is rounded up."""
    return (uid_hashes(uids, REPEAT, 0) >> np.uint64(32)).astype(np.uint32)


def times(weights: Weights, draws: Draws, epoch: int) -> npt.NDArray[np.int64]:
    """How often each row is shown in an epoch: its weight, rounded up or down; shape (rows,).

    This is floor((epoch + 1) w + u) - floor(epoch w + u), where u is the row's draw, scaled to [0, 1). After n epochs,
    the number of times that a row has been shown differs from n w by less than one. On average over u, a row is shown
    exactly w times in each epoch.
    """
    weight, start = weights.astype(np.float64), draws * 2.0**-32
    return (np.floor((epoch + 1) * weight + start) - np.floor(epoch * weight + start)).astype(np.int64)


@dataclass(frozen=True)
class Weighting:
    """The weight of a row as a function of its columns. Picklable."""

    expression: Expression
    alpha: float | None = None
    """The alpha of a soft cap. None: the expression is the weight."""
    shift: float = 0.0
    """The shift of a soft cap, ln(alpha * S); see `soft_cap`."""
    highest: float = np.inf

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the expression."""
        return self.expression.columns

    def of(self, table: pa.Table) -> Weights:
        """The weight of each row; 0 for rows that are not shown."""
        numbers = numbers_of(self.expression, table)
        if self.alpha is not None:
            numbers = soft_cap(numbers, self.alpha, self.shift)
        with np.errstate(over="ignore"):  # a weight can become infinite, which the step rejects
            return np.nan_to_num(np.clip(numbers, 0, self.highest), nan=0.0, posinf=np.inf).astype(np.float32)


def soft_cap(numbers: npt.NDArray[np.float64], alpha: float, shift: float) -> npt.NDArray[np.float64]:
    """ln(1 + e^(number + shift)) / alpha: how often soft cap sampling draws a row on average, if it draws many small
    batches.

    Solving dn/dS = e^(number - alpha n), where n is how often the row has been drawn and S is proportional to the
    number of samples, gives e^(alpha n) = 1 + alpha S e^number.
    """
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return np.asarray(np.logaddexp(0.0, numbers + shift) / alpha)


def numbers_of(expression: Expression, table: pa.Table) -> npt.NDArray[np.float64]:
    """The values of an expression; NaN for null."""
    values = expression.evaluate(table)
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(as_doubles(array).to_numpy(zero_copy_only=False), np.float64)


@dataclass(frozen=True)
class HasWeight:
    """Keeps the rows that are shown."""

    step: int
    weighting: Weighting

    @property
    def columns(self) -> frozenset[str]:
        """Columns that the weight is computed from."""
        return self.weighting.columns

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """True for rows with a weight above 0."""
        return self.weighting.of(table) > 0


@dataclass(frozen=True)
class WeightSums:
    """Collects (sum of the weights in ticks, number of weights below 1, highest weight) for each shard."""

    weighting: Weighting
    dtypes: Sequence[np.dtype[Any]] = (np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.float64))

    @property
    def columns(self) -> frozenset[str]:
        """Columns that the weight is computed from."""
        return self.weighting.columns

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """Return one number per array. Below 2^53, the ticks of a shard are exact in a float64."""
        weights = self.weighting.of(table).astype(np.float64)
        ticks, below = np.rint(weights / TICK).sum(), int((weights < 1).sum())
        return [np.array([ticks]), np.array([below]), np.array([weights.max(initial=0.0)])]


def sum_of_ticks(ticks: Array) -> float:
    """The sum of the weights, from the ticks of some shards."""
    return sum(map(int, ticks.tolist())) * TICK
