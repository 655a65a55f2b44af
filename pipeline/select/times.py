"""Compares columns of times, dates and durations for `where`, exactly in any units."""

from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Value: TypeAlias = Any
"""A pyarrow Array, ChunkedArray or Scalar."""

_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def parse(text: Value, kind: pa.DataType) -> Value:
    """Parse a time with all its digits, whatever the column's unit. As in SQL, a date means midnight at its start."""
    moment = text.cast(pa.timestamp("us"))
    zone = getattr(kind, "tz", None)
    return pc.assume_timezone(moment, "UTC").cast(pa.timestamp("us", zone)) if zone else moment


def compare(function: Callable[[Value, Value], Value], left: Value, right: Value) -> Value:
    """Apply `function`, such as `pc.less`, to two times.

    Arrow casts both to the finer unit. Where that cannot hold one of them (nanoseconds end in the year 2262), the days
    are compared, and the rest if the days are equal.
    """
    try:
        return function(left, right)
    except pa.ArrowInvalid:
        days, rests = zip(_days_and_rest(left), _days_and_rest(right), strict=True)
        return pc.if_else(pc.equal(*days), function(*rests), function(*days))


def _days_and_rest(times: Value) -> tuple[Value, Value]:
    """Whole days since 1970, rounded toward it, and the remaining nanoseconds."""
    kind = times.type
    per_day = 1 if pa.types.is_date32(kind) else _PER_DAY["ms" if pa.types.is_date64(kind) else kind.unit]
    number = times.cast(pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(pa.int64())
    days = pc.divide(number, per_day)
    return days, pc.multiply(pc.subtract(number, pc.multiply(days, per_day)), _PER_DAY["ns"] // per_day)
