"""Compares columns with thresholds and does arithmetic, by DuckDB's rules. All such code for `where` is in this file.

The common type of two numbers depends on their types:

    double and any               double
    float or half and any        float, so 0.7 becomes a float32 when compared with a float32 column
    decimal and integer          decimal, exact
    uint64 and signed            decimal, exact
    other integers               int64

Unlike in DuckDB, `+ - * /` widen floats and halves to doubles: in float32, all sums of a similarity and 1700000000 are
the same. A literal with a decimal point, or of more than 64 bits, is a decimal. Operations on null give null, and so
does every comparison with NaN: in DuckDB NaN is the largest number, but here it passes neither a threshold nor its
opposite.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.select import times

Value: TypeAlias = Any
"""A pyarrow Array, ChunkedArray or Scalar."""
Numbers = npt.NDArray[np.float64 | np.int64 | np.uint64]

MAX_LITERAL_DIGITS = 38
"""As in DuckDB. Integers with more digits are refused; numbers with a decimal point or an exponent become doubles."""

_DECIMAL128_DIGITS, _DECIMAL256_DIGITS = 38, 76
_MISSING = pa.scalar(None, pa.bool_())


def is_number(kind: pa.DataType) -> bool:
    """Whether the type supports arithmetic. Booleans are not numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _are_numbers(*values: Value) -> bool:
    return all(is_number(value.type) for value in values)


def with_type(values: Sequence[Value], kind: pa.DataType) -> list[Value]:
    """The values, but a column of the type null, which Arrow's functions do not accept, gets the type of the first
    other value, or `kind` if all are null."""
    kind = next((value.type for value in values if not pa.types.is_null(value.type)), kind)
    return [value.cast(kind) if pa.types.is_null(value.type) else value for value in values]


def integer_literal(number: int) -> pa.Scalar:
    """The number as int64, uint64 or decimal, the first that fits. Raises OverflowError beyond MAX_LITERAL_DIGITS."""
    if -(1 << 63) <= number < 1 << 64:
        return pa.scalar(number, pa.int64() if number < 1 << 63 else pa.uint64())
    if abs(number) >= 10**MAX_LITERAL_DIGITS:
        raise OverflowError(f"a number of more than {MAX_LITERAL_DIGITS} digits is too large")
    return pa.scalar(Decimal(number), pa.decimal128(MAX_LITERAL_DIGITS, 0))


def decimal_literal(text: str) -> pa.Scalar:
    """The exact decimal of `0.7` or `7e-1`; a double if it has more than MAX_LITERAL_DIGITS digits."""
    number = Decimal(text)
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)  # no literal is infinite or NaN
    scale = max(0, -exponent)
    precision = max(len(digits) + max(0, exponent), scale, 1)
    if precision > MAX_LITERAL_DIGITS:
        return pa.scalar(float(text.replace("_", "")), pa.float64())
    plain = Decimal(int(number)) if exponent > 0 else number
    return pa.scalar(plain, pa.decimal128(precision, scale))


def compare(function: Callable[[Value, Value], Value], left: Value, right: Value) -> Value:
    """Apply `function`, such as `pc.less`, to two numeric columns or literals; null where either is null or NaN."""
    left, right = _rounded_to_half(left, right), _rounded_to_half(right, left)
    kind = _comparable_type(left.type, right.type)
    left, right = _cast(left, kind), _cast(right, kind)
    result = function(left, right)
    if not pa.types.is_floating(kind):
        return result
    return pc.if_else(pc.or_(pc.is_nan(left), pc.is_nan(right)), _MISSING, result)


def add(left: Value, right: Value) -> Value:
    """The sum. Raises ArrowInvalid if it leaves the range of int64."""
    return pc.add_checked(*_for_arithmetic(left, right, _sum_digits))


def subtract(left: Value, right: Value) -> Value:
    """The difference; of two dates, the number of days. Raises ArrowInvalid if it leaves the range of int64."""
    if times.are_dates(left, right):
        left, right = times.day_numbers(left), times.day_numbers(right)
    return pc.subtract_checked(*_for_arithmetic(left, right, _sum_digits))


def multiply(left: Value, right: Value) -> Value:
    """The product. Raises ArrowInvalid if it leaves the range of int64."""
    return pc.multiply_checked(*_for_arithmetic(left, right, _product_digits))


def divide(left: Value, right: Value) -> Value:
    """The quotient, a double. Division by zero gives infinity or NaN."""
    if not _are_numbers(left, right):
        return pc.divide(left, right)
    return pc.divide(as_doubles(left), as_doubles(right))


def negate(value: Value) -> Value:
    """The number with the opposite sign. Raises ArrowInvalid for -2^63."""
    return pc.negate_checked(_widen(value))


def absolute(value: Value) -> Value:
    """The number without its sign. Raises ArrowInvalid for -2^63."""
    return pc.abs_checked(_widen(value))


def least(*values: Value) -> Value:
    """The smallest value in each row; null or NaN if any of the values is."""
    return _extreme(pc.min_element_wise, values)


def greatest(*values: Value) -> Value:
    """The largest value in each row; null or NaN if any of the values is."""
    return _extreme(pc.max_element_wise, values)


def clip(value: Value, low: Value, high: Value) -> Value:
    """The value, limited to at least `low` and at most `high`; null or NaN if any of the three is."""
    return least(greatest(value, low), high)


def as_doubles(value: Value) -> Value:
    """The nearest float64 of each number."""
    return _cast(value, pa.float64())


def exact_numbers(column: pa.Array) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """(the numbers [n], mask of those that are neither null nor NaN [n]). Integers stay integers, because float64
    cannot tell them apart above 2^53; the number in place of null is 0. Anything else becomes float64."""
    if not pa.types.is_integer(column.type):
        values = as_doubles(column).to_numpy(zero_copy_only=False)
        return values, ~np.isnan(values)
    wide = column.cast(pa.uint64() if column.type == pa.uint64() else pa.int64())
    return wide.fill_null(0).to_numpy(zero_copy_only=False), column.is_valid().to_numpy(zero_copy_only=False)


def _extreme(function: Callable[..., Value], values: tuple[Value, ...]) -> Value:
    if not _are_numbers(*values):
        return function(*times.in_one_unit(times.with_parsed_texts(values)), skip_nulls=False)
    kind = reduce(_comparable_type, (value.type for value in values))
    values = tuple(_cast(value, kind) for value in values)
    result = function(*values, skip_nulls=False)
    if not pa.types.is_floating(kind):
        return result
    return pc.if_else(reduce(pc.or_, map(pc.is_nan, values)), pa.scalar(float("nan"), kind), result)


def _comparable_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type in which the values of both types have the same order as in their common type."""
    if (floating := _float_type(one, other)) is not None:
        return floating
    if pa.types.is_unsigned_integer(one) and pa.types.is_unsigned_integer(other):
        return pa.uint64()
    if pa.types.is_integer(one) and pa.types.is_integer(other) and pa.uint64() not in (one, other):
        return pa.int64()
    digits, scale = _whole_digits(one, other), max(_scale(one), _scale(other))
    return _decimal_type(digits + scale, scale)


def _for_arithmetic(
    left: Value, right: Value, digits_of: Callable[[pa.DataType, pa.DataType], int]
) -> tuple[Value, Value]:
    """The operands in types that Arrow can calculate with. `digits_of` returns the precision of a decimal result."""
    one, other = left.type, right.type
    if not _are_numbers(left, right):
        left, right = times.in_one_unit([left, right])
        return left, right  # Arrow can calculate with times and rejects anything else
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        return as_doubles(left), as_doubles(right)
    if pa.types.is_integer(one) and pa.types.is_integer(other) and pa.uint64() not in (one, other):
        return _cast(left, pa.int64()), _cast(right, pa.int64())
    digits = digits_of(one, other)
    if digits > _DECIMAL256_DIGITS:
        return as_doubles(left), as_doubles(right)
    make = pa.decimal128 if digits <= _DECIMAL128_DIGITS else pa.decimal256
    kinds = [make(_digits(kind), _scale(kind)) for kind in (one, other)]
    return _cast(left, kinds[0]), _cast(right, kinds[1])


def _sum_digits(one: pa.DataType, other: pa.DataType) -> int:
    return _whole_digits(one, other) + max(_scale(one), _scale(other)) + 1


def _product_digits(one: pa.DataType, other: pa.DataType) -> int:
    return _digits(one) + _digits(other) + 1


def _decimal_type(digits: int, scale: int) -> pa.DataType:
    if digits > _DECIMAL256_DIGITS:
        return pa.float64()
    return (pa.decimal128 if digits <= _DECIMAL128_DIGITS else pa.decimal256)(digits, scale)


def _float_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The floating-point type to compare in; None if neither type is a floating-point type."""
    if pa.float64() in (one, other):
        return pa.float64()
    return pa.float32() if pa.types.is_floating(one) or pa.types.is_floating(other) else None


def _widen(value: Value) -> Value:
    """Widen integers to int64, or to decimals if int64 is too small, and float16 to float32."""
    if value.type == pa.uint64():
        return _cast(value, pa.decimal128(_digits(value.type), 0))
    if pa.types.is_integer(value.type):
        return _cast(value, pa.int64())
    return _cast(value, pa.float32()) if value.type == pa.float16() else value


def _rounded_to_half(literal: Value, other: Value) -> Value:
    """A decimal literal rounded to float16 if the other operand is a float16 column."""
    if other.type != pa.float16() or not (isinstance(literal, pa.Scalar) and pa.types.is_decimal(literal.type)):
        return literal
    with np.errstate(over="ignore"):
        half = np.float16(float(literal.as_py()))
    return pa.scalar(float(half), pa.float32()) if np.isfinite(half) else literal


def _cast(value: Value, kind: pa.DataType) -> Value:
    """Cast to the type that an operation needs. Integers and decimals become the nearest floating-point number."""
    if value.type == kind:
        return value
    if pa.types.is_decimal(value.type) and pa.types.is_floating(kind):
        return pc.cast(pc.cast(value, pa.string()), kind)  # Arrow's own cast turns 0.7 into 0.7000000000000001
    return pc.cast(value, kind, safe=not pa.types.is_floating(kind))


def _digits(kind: pa.DataType) -> int:
    if pa.types.is_decimal(kind):
        return int(kind.precision)
    return 20 if kind == pa.uint64() else 19 if kind == pa.int64() else 10


def _scale(kind: pa.DataType) -> int:
    return int(kind.scale) if pa.types.is_decimal(kind) else 0


def _whole_digits(one: pa.DataType, other: pa.DataType) -> int:
    """Digits before the decimal point."""
    return max(_digits(one) - _scale(one), _digits(other) - _scale(other))
