"""Summarizes the values of a column over a whole dataset: ranks, mean and deviation. Mergeable, in any order.

Values are counted in buckets of equal bits: the highest 26 bits of a float64, reordered so that they sort like the
numbers. A bucket is 1/16,384 of a value wide, as in HDR histograms (http://hdrhistogram.org), and within it ranks are
interpolated.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Doubles = npt.NDArray[np.float64]

_SHIFT = np.uint64(64 - 26)
_SIGN = np.uint64(1 << 63)
_ROUNDING = 1e-7
"""Deviations below this share of the mean are rounding errors of the sums."""


@dataclass(frozen=True)
class ValueSketch:
    """Counts of values by bucket, and their sums."""

    buckets: U64
    """In ascending order."""
    counts: U64
    sums: tuple[float, float]
    """Of the values, and of their squares."""

    @classmethod
    def of(cls, values: Doubles) -> "ValueSketch":
        """The sketch of some values. NaN and infinite ones are left out."""
        finite = values[np.isfinite(values)]
        buckets, counts = np.unique(_ordered(finite) >> _SHIFT, return_counts=True)
        with np.errstate(over="ignore"):
            squares = finite * finite
        return cls(buckets, counts.astype(np.uint64), (_sum(finite), _sum(squares)))

    @classmethod
    def merged(cls, parts: "list[ValueSketch]") -> "ValueSketch":
        """The sketch of all values of some sketches."""
        buckets, inverse = np.unique(np.concatenate([part.buckets for part in parts]), return_inverse=True)
        counts = np.zeros(len(buckets), np.uint64)
        np.add.at(counts, inverse, np.concatenate([part.counts for part in parts]))
        first, second = (_sum([part.sums[power] for part in parts]) for power in (0, 1))
        return cls(buckets, counts, (first, second))

    @property
    def num_values(self) -> int:
        """How many values it counts."""
        return int(self.counts.sum())

    def ranks(self, values: Doubles) -> Doubles:
        """The share of the counted values that are lower than each value, from 0 to 1. NaN stays NaN."""
        below = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.float64)  # [buckets + 1]
        bits = _ordered(values)
        buckets = bits >> _SHIFT
        at = np.searchsorted(self.buckets, buckets)
        is_there = (at < len(self.buckets)) & (self.buckets[np.minimum(at, len(self.buckets) - 1)] == buckets)
        inside = (bits & ((np.uint64(1) << _SHIFT) - np.uint64(1))) / float(1 << int(_SHIFT))
        counted = np.where(is_there, np.append(self.counts, 0)[at] * inside, 0)
        return np.where(np.isnan(values), np.nan, (below[at] + counted) / self.num_values)

    def zscores(self, values: Doubles) -> Doubles:
        """(value - mean) / standard deviation of the counted values; 0 if they are all equal."""
        mean = self.sums[0] / self.num_values
        variance = max(0.0, self.sums[1] / self.num_values - mean * mean)
        deviation = math.sqrt(variance)
        if deviation <= _ROUNDING * abs(mean):
            return np.where(np.isnan(values), np.nan, 0.0)
        return (values - mean) / deviation


def _sum(values: Iterable[float]) -> float:
    """Exact, then rounded once; infinite if it is too large."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # the latter for inf - inf
        return math.inf


def _ordered(values: Doubles) -> U64:
    """The bits of each number, reordered so that they sort like the numbers."""
    bits = (values + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
