"""Solves for the scale of soft cap sampling at which all weights add up to the requested number of samples.

The numbers of all rows are counted in buckets of numbers with equal leading bits, as in pipeline/score/value_sketch.py.
The width of a bucket is at most 1/4,096 of its values. Computed from the mean of each bucket, the sum of the weights is
accurate to about one part in a million.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.sums import add_up
from pairmill.pipeline.select.weights import numbers_of, soft_cap

BUCKET = np.dtype([("bucket", "<u8"), ("rows", "<u8"), ("rest", "<u8")])
"""The highest 24 bits of a float64, the number of rows whose numbers start with these bits, and the sum of the next 26
bits of these numbers. The sum is exact, so it does not depend on the order of the rows."""

_SHIFT, _REST_BITS = np.uint64(40), np.uint64(26)
_SIGN = np.uint64(1 << 63)
_STEPS = 200
"""Maximum number of steps of the bisection. It ends earlier if no float64 lies between the bounds."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NumberBuckets:
    """Collects the BUCKETs of an expression. Null, NaN and infinite numbers are left out."""

    expression: Expression
    dtypes: Sequence[np.dtype[Any]] = (BUCKET,)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the expression."""
        return self.expression.columns

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """The buckets of one shard."""
        numbers = numbers_of(self.expression, table)
        bits = (numbers[np.isfinite(numbers)] + 0.0).view(np.uint64)  # -0.0 becomes 0.0
        ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        found = np.zeros(len(ordered), BUCKET)
        found["bucket"], found["rows"] = ordered >> _SHIFT, 1
        found["rest"] = (ordered >> (_SHIFT - _REST_BITS)) & np.uint64((1 << int(_REST_BITS)) - 1)
        return [merge_buckets(found)]


def merge_buckets(*parts: Array) -> Array:
    """Add up buckets with equal leading bits; in ascending order."""
    return add_up(BUCKET, parts)


def means(buckets: Array) -> Doubles:
    """The mean of the numbers in each bucket; shape (buckets,)."""
    rest = buckets["rest"] / buckets["rows"]
    bits = (buckets["bucket"] << _SHIFT) + (rest * float(1 << int(_SHIFT - _REST_BITS))).astype(np.uint64)
    numbers: Doubles = np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float64)
    return numbers


def solve_shift(buckets: Array, alpha: float, highest: float, samples: float) -> float:
    """The `shift` of `soft_cap` at which the weights add up to `samples`. Raises StepError if that is impossible."""
    numbers, rows = means(buckets), buckets["rows"].astype(np.float64)
    if not len(numbers):
        raise StepError("`by` has no finite number in any row; use another expression")
    if samples > (most := highest * rows.sum()):
        raise StepError(
            f"{samples:,.0f} samples of {int(rows.sum()):,} rows need a higher max; the current max allows {most:,.0f}"
        )
    low = -float(numbers.max()) - 800.0
    high = -float(numbers.min()) + alpha * min(samples, highest * 2) + 50.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        total = float((np.minimum(soft_cap(numbers, alpha, middle), highest) * rows).sum())
        low, high = (middle, high) if total < samples else (low, middle)
    return high
