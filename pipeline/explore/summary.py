"""Describes the filter of each column: its kind, and its range, histogram or choices."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import widened
from pairmill.pipeline.common.numbers import fewest_digits
from pairmill.schemas.pairs import is_embedding

Kind = Literal["number", "choice", "text", "time"]

MAX_CHOICES = 24
"""Maximum number of choices. A text column with more distinct values gets a text search instead."""
BINS = 40
_MAX_CHOICE_CHARS = 80
_MAX_DECIMALS, _LARGE = 9, 1e15
"""If a column needs more decimals, or has a larger value, its values are shown with exponents."""
_LEAST_WIDTH = 1e-300
"""Below this range, a step would not be a normal float64."""


@dataclass(frozen=True)
class Choice:
    """One value of a column, and the number of rows with it."""

    value: str
    rows: int


@dataclass(frozen=True)
class Column:
    """A column with a filter."""

    name: str
    kind: Kind
    is_integer: bool = False
    is_boolean: bool = False
    nulls: int = 0
    not_finite: int = 0
    """Number of rows of a numeric column that are NaN or infinite, which the histogram leaves out."""
    low: float = 0.0
    """The lowest finite value of a numeric column."""
    high: float = 0.0
    only_number: str | None = None
    """The value that all rows of a numeric column have, as text; None if there are several, or NaN or null."""
    histogram: Sequence[int] = ()
    """Number of rows in each of BINS equal bins from `low` to `high`."""
    choices: Sequence[Choice] = ()

    @property
    def is_useful(self) -> bool:
        """Whether a filter on this column could keep some rows and drop others."""
        if self.kind == "number":
            has_several = bool(self.histogram) and self.only_number is None
            return has_several or (self.nulls > 0) + (self.not_finite > 0) > 1
        return self.kind != "choice" or len(self.choices) + (self.nulls > 0) > 1

    @property
    def only_value(self) -> str:
        """The value of all rows as text, if there is a single one."""
        if self.choices:
            return self.choices[0].value or "empty"
        return self.only_number or ""

    @property
    def has_values(self) -> bool:
        """Whether the column has a value other than NaN and infinity in any row. True if that is not known yet."""
        return bool(self.histogram or self.choices) or self.kind in ("text", "time")

    @property
    def power(self) -> int:
        """The step of the column's slider is ten to this power: at most a fiftieth of the range or, if all values are
        equal, of the value. At least 0 for integers."""
        width = min(self.high - self.low or abs(self.low), sys.float_info.max)
        if self.is_integer:
            return max(0, math.floor(math.log10(max(width, 1) / 50)))
        return math.floor(math.log10(width / 50)) if width > _LEAST_WIDTH else 0

    @property
    def step(self) -> float:
        """The step of the column's slider."""
        return float(f"1e{self.power}")

    @property
    def slider_low(self) -> float:
        """`low`, rounded down to a step."""
        return self._at_step(self.low, ROUND_FLOOR)

    @property
    def slider_high(self) -> float:
        """`high`, rounded up to a step."""
        return self._at_step(self.high, ROUND_CEILING)

    def _at_step(self, value: float, rounding: str) -> float:
        rounded = float(Decimal(value).quantize(Decimal(f"1e{self.power}"), rounding))
        return max(-sys.float_info.max, min(rounded, sys.float_info.max))

    @property
    def decimals(self) -> int:
        """Number of digits shown after the decimal point."""
        return max(0, -self.power)

    def text(self, value: float | Decimal) -> str:
        """A value of a numeric column. Values that are more than a step apart have different texts."""
        if self.is_integer:
            return f"{value:,}"
        largest = max(abs(self.low), abs(self.high))
        if self.decimals > _MAX_DECIMALS or largest >= _LARGE:
            return f"{float(value):.{max(3, math.floor(math.log10(largest)) - self.power)}e}"
        return f"{float(value):,.{max(3, self.decimals)}f}"


def kind_of(field: pa.Field, sample: pa.ChunkedArray) -> Kind | None:
    """The kind of filter for a column, from its type and some of its values; None for no filter (lists, bytes)."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if is_embedding(field):
        return None
    if pa.types.is_boolean(kind):
        return "choice"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "choice" if _is_categorical(sample) else "text"
    return None


def _is_categorical(sample: pa.ChunkedArray) -> bool:
    """Whether a text column has few distinct values, which repeat and are short."""
    values = sample.drop_null()
    if not len(values):
        return False
    distinct = pc.unique(values)
    longest = pc.max(pc.utf8_length(distinct)).as_py()
    return bool(len(distinct) <= max(1, min(MAX_CHOICES, len(values) // 8)) and longest <= _MAX_CHOICE_CHARS)


def describe(name: str, kind: Kind, column: pa.ChunkedArray) -> Column:
    """The filter for a column, from all its values."""
    if kind == "number":
        return _number(name, column)
    if kind == "choice":
        return _choice(name, column)
    return Column(name, kind, nulls=column.null_count)


def unread(name: str, kind: Kind) -> Column:
    """The filter for a text column that has not been read yet."""
    return Column(name, kind)


def _number(name: str, column: pa.ChunkedArray) -> Column:
    is_integer = pa.types.is_integer(column.type)
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    finite = values[np.isfinite(values)]
    not_finite = len(values) - len(finite) - column.null_count
    if not len(finite):
        return Column(name, "number", is_integer=is_integer, nulls=column.null_count, not_finite=not_finite)
    low, high = float(finite.min()), float(finite.max())
    extremes = pc.min_max(widened(column)).as_py()  # exact: integers above 2^53 can be equal as float64
    if not_finite or column.null_count or extremes["min"] != extremes["max"]:
        only = None
    else:
        only = fewest_digits(low, column.type) if pa.types.is_floating(column.type) else str(extremes["min"])
    bins = np.zeros(BINS, np.int64)
    bins[BINS // 2] = len(finite)  # a single bar if all values are equal
    scaled = finite / (max(abs(low), abs(high)) or 1.0)  # so that no difference overflows
    if width := float(np.ptp(scaled)):
        at = ((scaled - scaled.min()) * (BINS / width)).astype(np.int64)
        bins = np.bincount(np.clip(at, 0, BINS - 1), minlength=BINS)
    return Column(name, "number", is_integer=is_integer, nulls=column.null_count, not_finite=not_finite, low=low,
                  high=high, only_number=only, histogram=tuple(bins.tolist()))  # fmt: skip


def _choice(name: str, column: pa.ChunkedArray) -> Column:
    is_boolean = pa.types.is_boolean(column.type)
    counts = pc.value_counts(column.drop_null())
    found = [(value["values"].as_py(), value["counts"].as_py()) for value in counts]
    if len(found) > MAX_CHOICES:
        return Column(name, "text", nulls=column.null_count)
    found.sort(key=lambda pair: (-pair[1], str(pair[0])))
    choices = tuple(Choice(str(value), rows) for value, rows in found)
    return Column(name, "choice", is_boolean=is_boolean, nulls=column.null_count, choices=choices)
