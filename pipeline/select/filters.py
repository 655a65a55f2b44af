"""Defines filters, which decide about each row by itself during a scan."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.order import Order, OrderKey, below
from pairmill.schemas.pairs import KEPT_STATUS

RowMask = npt.NDArray[np.bool_]
"""(rows,)"""
RowIndices = npt.NDArray[np.int64]
"""(rows,): indices over the whole dataset; see Chunk."""


class Filter(Protocol):
    """Keeps or drops each row by itself."""

    @property
    def step(self) -> int:
        """Number of the step that the filter belongs to."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `keep` reads."""

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """For each row of the table, whether it stays."""


@dataclass(frozen=True)
class IsKept:
    """Keeps the rows that the build kept."""

    step: int
    columns: frozenset[str] = frozenset({"status"})

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """True for rows with status `ok`."""
        return to_mask(pc.equal(table["status"], KEPT_STATUS))


@dataclass(frozen=True)
class Where:
    """Keeps the rows for which an expression is true."""

    step: int
    expression: Expression

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the expression."""
        return self.expression.columns

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """True where the expression is true; null counts as false."""
        return to_mask(self.expression.evaluate(table))


@dataclass(frozen=True)
class AtLeast:
    """Keeps the rows at or above a given key of an order."""

    step: int
    order: Order
    key: OrderKey

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the order."""
        return self.order.columns

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """Compare each row's key with the limit."""
        return ~below(self.order.keys(table), self.key)


@dataclass(frozen=True)
class NotDuplicate:
    """Keeps all rows but those that a dedup step dropped. `scan` fills in which of them are in its chunk."""

    step: int
    duplicates: RowIndices = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: frozenset[str] = frozenset()

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """Look up the row indices."""
        return ~np.isin(row_indices, self.duplicates)


def to_mask(column: pa.ChunkedArray | pa.Array) -> RowMask:
    """A column of booleans as an array; null becomes False."""
    filled = pc.fill_null(column, False)
    array = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    mask: RowMask = array.to_numpy(zero_copy_only=False)
    return mask
