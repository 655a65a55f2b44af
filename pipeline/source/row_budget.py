"""Bounds the memory of a shard's rows: rows that are too large become null, and the others stay.

Half of the budget is divided equally among the rows, so no row can use up the memory of the others. The other half goes
to larger rows, in order.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.source.files import MALFORMED_COLUMN


class RowBudget:
    """The memory left for the rows of a shard."""

    def __init__(self, num_rows: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._share = max_bytes // 2 // max(num_rows, 1)
        self._left = max_bytes // 2
        self._num_seen = 0
        self._problems: dict[int, str] = {}

    def within(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The next rows of the shard, with null for each row that does not fit."""
        sizes = row_sizes(batch)
        refused = [row for row in np.flatnonzero(sizes > self._share) if not self._fits(int(row), int(sizes[row]))]
        self._num_seen += batch.num_rows
        if not refused:
            return batch
        rows = np.arange(batch.num_rows, dtype=np.float64)
        rows[refused] = np.nan
        indices = pa.array(rows, pa.int64(), from_pandas=True)
        # Copied, because slices would keep the bytes of the other rows in memory.
        columns = [_taken(column, indices) for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)

    def noted(self, table: pa.Table) -> pa.Table:
        """The rows of the whole shard. For each row that did not fit, MALFORMED_COLUMN has the problem."""
        if not self._problems:
            return table
        problems = pa.array([self._problems.get(row) for row in range(table.num_rows)], pa.string())
        index = table.schema.get_field_index(MALFORMED_COLUMN)
        if index < 0:
            return table.append_column(MALFORMED_COLUMN, problems)
        known = table.column(index).cast(pa.string()).combine_chunks()
        return table.set_column(index, MALFORMED_COLUMN, pc.coalesce(problems, known))

    def _fits(self, row: int, num_bytes: int) -> bool:
        extra = num_bytes - self._share
        if extra <= self._left:
            self._left -= extra
            return True
        self._problems[self._num_seen + row] = (
            f"a row of {num_bytes:,} bytes, too many for its shard, which may take {self._max_bytes:,}; "
            "a smaller shard_rows may help"
        )
        return False


def row_sizes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Bytes of each row's values, [rows]. A dictionary value counts each time it is used."""
    return _sum([_sizes(column) for column in batch.columns], batch.num_rows)


def _sum(sizes: Iterable[npt.NDArray[np.int64]], length: int) -> npt.NDArray[np.int64]:
    total = np.zeros(length, np.int64)
    for each in sizes:
        total += each
    return total


def _sizes(values: pa.Array) -> npt.NDArray[np.int64]:
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        return _sizes(values.storage)
    if pa.types.is_dictionary(kind):
        of_entries = pa.array(_sizes(values.dictionary))
        return _integers(of_entries.take(values.indices))
    if pa.types.is_struct(kind):
        return _sum((_sizes(values.field(index)) for index in range(kind.num_fields)), len(values))
    if pa.types.is_fixed_size_list(kind):
        first, size = values.offset * kind.list_size, len(values) * kind.list_size
        of_items = _sizes(values.values.slice(first, size)).reshape(len(values), kind.list_size)
        of_lists: npt.NDArray[np.int64] = of_items.sum(axis=1)
        return of_lists
    if pa.types.is_map(kind):
        items = pa.StructArray.from_arrays([values.keys, values.items], ["key", "item"])
        lengths = np.diff(values.offsets.to_numpy(zero_copy_only=False))
        first = values.offsets[0].as_py()
        return _sizes_of_lists(items.slice(first, int(lengths.sum())), lengths)
    if pa.types.is_nested(kind):
        return _sizes_of_lists(pc.list_flatten(values), _integers(pc.list_value_length(values)))
    width = _width(kind)
    return _text_sizes(values) if width is None else np.full(len(values), width, np.int64)


def _width(kind: pa.DataType) -> int | None:
    """Bytes per value of a fixed-width type; None for other types."""
    if pa.types.is_null(kind):
        return 0
    try:
        return None if pa.types.is_dictionary(kind) else -(-kind.bit_width // 8)
    except ValueError:
        return None


def _sizes_of_lists(items: pa.Array, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bytes of each list; `items` are the items of all lists in order."""
    if (width := _width(items.type)) is not None:
        return lengths * width
    before = np.concatenate([[0], np.cumsum(_sizes(items))])
    ends = np.cumsum(lengths)
    return before[ends] - before[ends - lengths]  # type: ignore[no-any-return]


def _text_sizes(values: pa.Array) -> npt.NDArray[np.int64]:
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        values = values.cast(pa.large_binary())
    return _integers(pc.binary_length(values))


def _integers(values: pa.Array) -> npt.NDArray[np.int64]:
    """The integers as NumPy values, with 0 for null."""
    return values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _taken(column: pa.Array, indices: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # which `take` does not support
        plain = pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
        return column.cast(plain).take(indices).cast(kind)
    return column.take(indices)
