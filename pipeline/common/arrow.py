"""Builds Arrow arrays with as few copies as the format allows, and converts them to Python objects."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MAX_ARRAY_BYTES = (1 << 31) - 1
"""Maximum size of the strings, bytes or lists in one array with 32-bit offsets."""


def binary_column(values: Sequence[bytes | None]) -> pa.Array:
    """A large_binary array, made with one copy of the bytes. A builder would grow and copy its buffer several times."""
    offsets = np.fromiter(accumulate((len(value or b"") for value in values), initial=0), np.int64, len(values) + 1)
    valid = np.packbits(np.array([value is not None for value in values], bool), bitorder="little")
    data = b"".join(value for value in values if value is not None)
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), buffers)


def take_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """`Table.take`, also for columns of 2 GiB or more, which Arrow cannot concatenate (arrow#25822)."""
    if all(column.nbytes < MAX_ARRAY_BYTES for column in table.columns) or not len(rows):
        return table.take(pa.array(rows))
    if len(rows) == 1:
        return table.slice(int(rows[0]), 1)
    parts = np.array_split(rows, 2)
    return pa.concat_tables([take_rows(_sorted_rows(table, part), np.argsort(np.argsort(part))) for part in parts])


def _sorted_rows(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """The rows at these indices, taken from each chunk separately. The indices must be in ascending order."""
    ascending, start, found = np.sort(rows), 0, []
    for batch in table.to_batches():
        first, end = np.searchsorted(ascending, [start, start + batch.num_rows])
        found.append(batch.take(pa.array(ascending[first:end] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(found, table.schema)


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """`to_pylist`, for values of any type.

    If some dates or times do not fit into Python's types (years after 9999, nanoseconds of a time of day, the time
    24:00), all values of the column become text, in Arrow's format. Times in an unknown zone become UTC.
    """
    column = in_known_zones(column)
    kind = column.type
    try:
        if has_leaf(kind, pa.types.is_time):
            column.validate(full=True)  # `to_pylist` turns 24:00 into 00:00
        in_microseconds = with_leaves(kind, lambda leaf: pa.time64("us") if pa.types.is_time64(leaf) else leaf)
        return list((column if in_microseconds == kind else column.cast(in_microseconds)).to_pylist())
    except (pa.ArrowInvalid, OverflowError, ValueError):
        as_text = with_leaves(kind, lambda leaf: pa.string() if pa.types.is_temporal(leaf) else leaf)
        return list(column.cast(as_text).to_pylist())


def with_plain_times(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The same values, without dictionaries and extension types that contain times or decimals: in these, pandas loses
    zones and polars fails."""
    if not has_leaf(column.type, lambda leaf: _plain_times(leaf) != leaf):
        return column
    return column.cast(with_leaves(column.type, _plain_times))


def _plain_times(leaf: pa.DataType) -> pa.DataType:
    inner = leaf
    if pa.types.is_dictionary(leaf):
        inner = leaf.value_type
    elif isinstance(leaf, pa.BaseExtensionType):
        inner = leaf.storage_type
    return inner if has_leaf(inner, lambda each: pa.types.is_temporal(each) or pa.types.is_decimal(each)) else leaf


def in_known_zones(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The same times, in UTC if Python or Arrow does not know their zone on this machine."""
    column = with_plain_times(column)
    if not has_leaf(column.type, _has_unknown_zone):
        return column
    in_utc = with_leaves(column.type, lambda leaf: pa.timestamp(leaf.unit, "UTC") if _has_unknown_zone(leaf) else leaf)
    return column.cast(in_utc)


def _has_unknown_zone(leaf: pa.DataType) -> bool:
    if not pa.types.is_timestamp(leaf) or leaf.tz is None:
        return False
    try:
        pa.array([0], leaf).cast(pa.string())
        pa.lib.string_to_tzinfo(leaf.tz)
    except (KeyError, ValueError, OSError):  # which one depends on the library that Arrow asks
        return True
    return False


def stay_exact(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether NumPy can represent the integers exactly, at any depth. It converts them to float64 if one of them is
    null."""
    return all(not integers.null_count or fit_float64(integers) for integers in _integers(column))


def fit_float64(integers: pa.Array | pa.ChunkedArray) -> bool:
    """Whether no integer is beyond 2^53, so that float64 can tell all of them apart."""
    try:
        integers.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def widened(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in a type that all of Arrow's functions accept: many of them lack half floats and decimals of up
    to 64 bits."""
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    if pa.types.is_decimal32(column.type) or pa.types.is_decimal64(column.type):
        return column.cast(pa.decimal128(column.type.precision, column.type.scale))
    return column


def _integers(column: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array | pa.ChunkedArray]:
    """The integers in a column, per type."""
    kind = column.type
    if pa.types.is_integer(kind):
        yield column
    elif pa.types.is_map(kind):
        for maps in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            yield from _integers(maps.keys)
            yield from _integers(maps.items)
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            yield from _integers(child)
    elif pa.types.is_nested(kind):
        yield from _integers(pc.list_flatten(column))


def with_leaves(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `change` applied to all non-nested types in it."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(with_leaves(field.type, change)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(with_leaves(kind.key_type, change), with_leaves(kind.item_type, change))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(with_leaves(kind.value_type, change), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(with_leaves(kind.value_type, change))
    if pa.types.is_list(kind):
        return pa.list_(with_leaves(kind.value_type, change))
    return change(kind)


def has_leaf(kind: pa.DataType, predicate: Callable[[pa.DataType], bool]) -> bool:
    """Whether the predicate is true of the type or of any type in it."""
    return predicate(kind) or any(has_leaf(kind.field(index).type, predicate) for index in range(kind.num_fields))
