"""Brings times, dates and durations of `where` to one form. A column or text without a time zone means UTC."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Value: TypeAlias = Any
"""A pyarrow Array, ChunkedArray or Scalar."""

_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def plain(value: Value) -> Value:
    """Dates and zoned times as times in UTC, without a zone and with all their digits. Anything else stays as it is."""
    kind = value.type
    if pa.types.is_date(kind):
        return value.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
    return value.cast(pa.timestamp(kind.unit)) if pa.types.is_timestamp(kind) else value


def with_parsed_texts(values: Sequence[Value]) -> list[Value]:
    """The values, but texts beside a time are parsed as times. As in SQL, a date means midnight at its start.

    Raises TypeError if a text is not a time.
    """
    if not any(pa.types.is_timestamp(value.type) for value in values):
        return list(values)
    try:
        return [value.cast(pa.timestamp("us")) if _is_text(value.type) else value for value in values]
    except pa.ArrowInvalid:
        raise TypeError("write times as '2024-01-31' or '2024-01-31 12:30', in UTC and without an offset") from None


def in_one_unit(values: Sequence[Value]) -> list[Value]:
    """The values, but times and durations in the finest of their units. Raises OverflowError if it cannot hold one."""
    units = [value.type.unit for value in values if _has_unit(value.type)]
    finest = max(units, key=_PER_DAY.__getitem__, default="")
    try:
        return [_in_unit(value, finest) if _has_unit(value.type) else value for value in values]
    except pa.ArrowInvalid:
        raise OverflowError(f"a time in some row exceeds the range of 64-bit {_UNIT_NAMES[finest]}") from None


def compare(function: Callable[[Value, Value], Value], left: Value, right: Value) -> Value:
    """Apply `function`, such as `pc.less`, to two times or durations, exactly in any units.

    Where the finer unit cannot hold one of them (nanoseconds end in the year 2262), the days are compared, and the rest
    if the days are equal.
    """
    try:
        return function(*in_one_unit([left, right]))
    except OverflowError:
        days, rests = zip(_days_and_rest(left), _days_and_rest(right), strict=True)
        return pc.if_else(pc.equal(*days), function(*rests), function(*days))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _has_unit(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_duration(kind))


def _in_unit(value: Value, unit: str) -> Value:
    return value.cast((pa.timestamp if pa.types.is_timestamp(value.type) else pa.duration)(unit))


def _days_and_rest(times: Value) -> tuple[Value, Value]:
    """Whole days since 1970, rounded toward it, and the remaining nanoseconds."""
    per_day = _PER_DAY[times.type.unit]
    number = times.cast(pa.int64())
    days = pc.divide(number, per_day)
    return days, pc.multiply(pc.subtract(number, pc.multiply(days, per_day)), _PER_DAY["ns"] // per_day)
