"""Defines filters, which keep or drop each row independently of the others during a scan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.order import Order, OrderKey, ReadUids, uids_in
from pairmill.schemas.pairs import KEPT_STATUS

RowMask = npt.NDArray[np.bool_]
"""For each row of a table, whether it stays; shape (rows,)."""
RowIndices = npt.NDArray[np.int64]
"""Indices of rows in the whole dataset (see Chunk); shape (rows,)."""


class Filter(Protocol):
    """Keeps or drops each row independently of the others."""

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
    """Keeps the rows whose key in an order is at or above a limit. `scan` fills in the chunk."""

    step: int
    order: Order
    key: OrderKey
    chunk: Chunk | None = None

    @property
    def columns(self) -> frozenset[str]:
        """Columns that decide most rows. The uids are read only for the rows whose score equals the limit's."""
        return self.order.first_columns

    def of_chunk(self, chunk: Chunk, duplicates: Sequence[RowIndices]) -> "AtLeast":
        """This filter for one chunk."""
        return replace(self, chunk=chunk)

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """True where the row's key is at or above the limit."""
        read_uids = uids_in(table) if "uid" in table.column_names else self._read_uids(row_indices)
        return self.order.compare(table, self.key, read_uids) >= 0

    def _read_uids(self, row_indices: RowIndices) -> ReadUids:
        assert self.chunk is not None
        chunk = self.chunk
        return lambda at: chunk.read_rows(row_indices[at], frozenset({"uid"}))["uid"]


@dataclass(frozen=True)
class NotDuplicate:
    """Keeps all rows except those that a dedup step dropped. `scan` fills in the duplicates in its chunk."""

    step: int
    is_duplicate: RowMask = field(default_factory=lambda: np.zeros(0, np.bool_))
    first_row_index: int = 0
    columns: frozenset[str] = frozenset()

    def of_chunk(self, chunk: Chunk, duplicates: Sequence[RowIndices]) -> "NotDuplicate":
        """This filter for one chunk. `duplicates`: the rows to drop, in any number of arrays."""
        is_duplicate = np.zeros(chunk.num_rows, np.bool_)
        for rows in duplicates:
            is_duplicate[rows - chunk.first_row_index] = True
        return replace(self, is_duplicate=is_duplicate, first_row_index=chunk.first_row_index)

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """True for rows that are not listed as duplicates."""
        return ~self.is_duplicate[row_indices - self.first_row_index]


def to_mask(column: pa.ChunkedArray | pa.Array) -> RowMask:
    """Convert a column of booleans to an array; null becomes False."""
    filled = pc.fill_null(column.cast(pa.bool_()), False)  # a column of the type null is null in all rows
    array = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    mask: RowMask = array.to_numpy(zero_copy_only=False)
    return mask
