"""Converts Arrow tables to pandas and polars, so that every value arrives: as itself, or as text if the library has no
such value."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from pairmill.pipeline.common.arrow import (
    has_leaf,
    in_known_zones,
    python_values,
    stay_exact,
    with_leaves,
    with_plain_times,
)

if TYPE_CHECKING:
    import pandas
    import polars

_MAX_DIGITS = 38
"""Maximum number of digits of a decimal in polars."""


def pandas_frame(table: pa.Table) -> "pandas.DataFrame":
    """The table for pandas. Integers stay exact, as Python integers if necessary. A column with dates or times of day
    that Python does not have becomes text."""
    import pandas

    table = _with_columns(table, in_known_zones)
    as_objects = [name for name in table.column_names if not _fits_pandas(table[name])]
    frame = table.drop_columns(as_objects).to_pandas()
    for position, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if name in as_objects:
            frame.insert(position, name, pandas.Series(python_values(column), dtype=object))
        elif not stay_exact(column):
            frame[name] = column.to_pandas(integer_object_nulls=True)
    return frame


def polars_frame(table: pa.Table) -> "polars.DataFrame":
    """The table for polars. Times in a zone that polars does not know, such as `+05:30`, become UTC. A column with the
    time 24:00, or with years or decimals that polars does not have, becomes text."""
    import polars

    frame = polars.from_arrow(_with_columns(table, _for_polars))
    assert isinstance(frame, polars.DataFrame)  # always true for a table
    return frame


def _with_columns(table: pa.Table, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pa.Table:
    for position, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        table = table.set_column(position, name, change(column))
    return table


def _fits_pandas(column: pa.ChunkedArray) -> bool:
    if has_leaf(column.type, lambda leaf: pa.types.is_temporal(leaf) or pa.types.is_decimal(leaf)):
        try:
            column.to_pandas()
        except (pa.ArrowException, OverflowError, ValueError):
            return False
    return True


def _for_polars(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = with_plain_times(column)
    if not has_leaf(column.type, lambda leaf: pa.types.is_temporal(leaf) or _polars_type(leaf) != leaf):
        return column
    kind = with_leaves(column.type, _polars_type)
    try:
        column.validate(full=True)  # polars takes 24:00 for null
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column.cast(with_leaves(column.type, _polars_text))


def _polars_type(leaf: pa.DataType) -> pa.DataType:
    """The type that polars converts without an error. It has no seconds, and does not check for overflow."""
    if pa.types.is_decimal256(leaf) and leaf.scale > _MAX_DIGITS:
        return pa.string()
    if pa.types.is_decimal(leaf):
        return pa.decimal128(min(leaf.precision, _MAX_DIGITS), leaf.scale)
    if pa.types.is_duration(leaf) and leaf.unit == "s":
        return pa.duration("ms")
    if pa.types.is_timestamp(leaf):
        return pa.timestamp("ms" if leaf.unit == "s" else leaf.unit, leaf.tz and _polars_zone(leaf.tz))
    return leaf


def _polars_text(leaf: pa.DataType) -> pa.DataType:
    """Text for types some of whose values polars does not have; for other types, the one that polars converts."""
    return pa.string() if pa.types.is_temporal(leaf) or pa.types.is_decimal256(leaf) else _polars_type(leaf)


def _polars_zone(zone: str) -> str:
    import polars

    try:
        polars.from_arrow(pa.array([], pa.timestamp("us", zone)))
    except polars.exceptions.ComputeError:
        return "UTC"
    return zone
