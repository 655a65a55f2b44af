"""Brings times, dates and durations of `where` to one form. A column or text without a time zone means UTC."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Value: TypeAlias = Any
"""A pyarrow Array, ChunkedArray or Scalar."""

_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_DURATION = re.compile(r"(-?\d{1,9}) (second|minute|hour|day|week)s?")
_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


class TimeTextError(TypeError):
    """A constant text beside a time or a duration is not one itself."""


def plain(value: Value) -> Value:
    """Zoned times as times in UTC, without a zone and with all their digits. Anything else stays as it is."""
    return value.cast(pa.timestamp(value.type.unit)) if pa.types.is_timestamp(value.type) else value


def with_parsed_texts(values: Sequence[Value]) -> list[Value]:
    """The values, but constant texts beside a time are parsed as times, and those beside a duration as durations. As in
    SQL, a date means midnight at its start. Raises TimeTextError if such a text is neither.
    """
    if any(pa.types.is_timestamp(value.type) or pa.types.is_date(value.type) for value in values):
        parse = _parsed_time
    elif any(pa.types.is_duration(value.type) for value in values):
        parse = _parsed_duration
    else:
        return list(values)
    return [parse(value.as_py()) if _is_constant_text(value) else value for value in values]


def are_dates(*values: Value) -> bool:
    """Whether all values are dates without a time."""
    return all(pa.types.is_date(value.type) for value in values)


def day_numbers(dates: Value) -> Value:
    """The days of dates since 1970, as int64."""
    return _days_and_rest(_as_time(dates))[0]


def in_one_unit(values: Sequence[Value]) -> list[Value]:
    """The values, but times and durations in the finest of their units, and dates beside other values as times. Raises
    OverflowError if the unit cannot hold a time."""
    if are_dates(*values):
        return [value.cast(pa.date64()) for value in values]
    values = [_as_time(value) for value in values]
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
        days, rests = zip(*(_days_and_rest(_as_time(value)) for value in (left, right)), strict=True)
        return pc.if_else(pc.equal(*days), function(*rests), function(*days))


def _is_constant_text(value: Value) -> bool:
    return isinstance(value, pa.Scalar) and bool(pa.types.is_string(value.type))


def _parsed_time(text: str) -> pa.Scalar:
    for kind in (pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")):
        try:
            return plain(pa.scalar(text).cast(kind))
        except pa.ArrowInvalid:
            continue
    raise TimeTextError(
        f"{text!r} is not a time; write '2024-01-31' or '2024-01-31 12:30', with a year of four digits, in UTC or with "
        "an offset such as +02:00"
    )


def _parsed_duration(text: str) -> pa.Scalar:
    if not (found := _DURATION.fullmatch(text)):
        raise TimeTextError(f"{text!r} is not a duration; write it as '7 days' or '12 hours'")
    return pa.scalar(int(found[1]) * _SECONDS[found[2]], pa.duration("s"))


def _as_time(value: Value) -> Value:
    """Dates as times at midnight. Anything else stays as it is."""
    if not pa.types.is_date(value.type):
        return value
    return value.cast(pa.timestamp("s" if pa.types.is_date32(value.type) else "ms"))


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
