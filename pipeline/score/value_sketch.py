"""Summarizes the values of a column over a whole dataset: ranks, mean and deviation. Sketches merge in any order.

Up to MAX_EXACT distinct values are counted individually, so ranks are exact. If there are more, they are counted in
buckets of values with the same 26 highest bits of a float64, reordered so that they sort like the numbers. The width of
a bucket is at most 1/16,384 of its values, similar to HDR histograms (http://hdrhistogram.org). A bucket records its
lowest and its highest value with their counts, so these also have exact ranks; between them, ranks are interpolated.
A bucket with more than MAX_ERROR of all values between its ends is crowded. Its values are counted again in Cells, the
equal parts of its range, until no bucket is crowded, so no rank is off by more. Integers are compared as integers,
because a float64 cannot tell them apart above 2^53.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.comparisons import Numbers

U64 = npt.NDArray[np.uint64]
Doubles = npt.NDArray[np.float64]
Kind = np.dtype[Any]
"""float64, int64 or uint64."""

MAX_EXACT = 1 << 18
"""If there are more distinct values than this, several share a bucket. This many values take 10 MB."""
MAX_ERROR = 1e-4
"""The largest error of a rank, as a share of all values."""
_LEAST_CELLS = 4
"""A crowded bucket gets at least half as many cells, so each pass at least halves its width."""
_SHIFT = np.uint64(64 - 26)
_SIGN = np.uint64(1 << 63)
_FLOAT = np.dtype(np.float64)
_OLD_ROUNDING = 1e-7
"""In old sketches, which have sums instead of moments, deviations below this share of the mean are rounding errors."""


@dataclass(frozen=True)
class Counts:
    """Counts of values by bucket, in ascending order. Values are numbers from `_ordered`. Each array is [buckets]."""

    low: U64
    """The lowest value of the bucket."""
    high: U64
    """The highest value of the bucket."""
    count: U64
    at_low: U64
    """The number of values equal to the lowest."""
    at_high: U64

    @classmethod
    def of(cls, ordered: U64) -> "Counts":
        """Count each distinct number of these from `_ordered`."""
        numbers, counts = np.unique(ordered, return_counts=True)
        count = counts.astype(np.uint64)
        return cls(numbers, numbers, count, count, count)

    @classmethod
    def joined(cls, parts: "Sequence[Counts]") -> "Counts":
        """The buckets of all parts, in ascending order. Several can have equal values."""
        columns = [np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)]
        return cls(*columns)[np.argsort(columns[0], kind="stable")]

    def __getitem__(self, chosen: npt.NDArray[np.generic]) -> "Counts":
        """The buckets with these indices, or of this mask."""
        return Counts(*(getattr(self, each.name)[chosen] for each in fields(self)))

    @property
    def inside(self) -> U64:
        """The number of values between the lowest and the highest."""
        return np.where(self.low == self.high, np.uint64(0), self.count - self.at_low - self.at_high)

    @property
    def is_crowded(self) -> npt.NDArray[np.bool_]:
        """Which buckets have too many values whose ranks are interpolated."""
        found: npt.NDArray[np.bool_] = self.inside > MAX_ERROR * float(self.count.sum())
        return found

    def by_leading_bits(self, kind: Kind) -> "Counts":
        """The same values, of this type, with one bucket per distinct value or, if there are too many, per 26 highest
        bits of their float64. The buckets must be in ascending order."""
        low = self.low
        if (low != self.high).any() or np.count_nonzero(low[1:] != low[:-1]) >= MAX_EXACT:
            return self.grouped(_as_doubles(low, kind) >> _SHIFT)
        return self.grouped(low)

    def grouped(self, keys: U64) -> "Counts":
        """The same values, with one bucket for all neighbors with equal keys."""
        low, high = self.low, self.high
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
        group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(keys))))  # [values]
        lowest, highest = (ufunc.reduceat(each, starts) for ufunc, each in ((np.minimum, low), (np.maximum, high)))
        at_low = np.where(low == lowest[group], self.at_low, 0)
        at_high = np.where(high == highest[group], self.at_high, 0)
        sums = (np.add.reduceat(each, starts) for each in (self.count, at_low, at_high))
        return Counts(lowest, highest, *sums)


@dataclass(frozen=True)
class Cells:
    """The equal parts of crowded buckets, in ascending order. Each array is [buckets]."""

    low: U64
    """The lowest value of the bucket, which is also the first of its first cell."""
    high: U64
    """The highest value of the bucket."""
    shift: U64
    """The width of the cells, as a power of two."""

    @classmethod
    def of(cls, crowded: Counts) -> "Cells":
        """Divide at most MAX_EXACT cells among these buckets, in proportion to their values."""
        share = crowded.inside / crowded.inside.sum()
        width = (crowded.high - crowded.low).astype(np.float64) + 1
        _, exponents = np.frexp(width / np.maximum(MAX_EXACT * share, _LEAST_CELLS))
        return cls(crowded.low, crowded.high, np.maximum(exponents, 0).astype(np.uint64))

    def count(self, values: Numbers) -> Counts:
        """Count the values in these buckets, by cell."""
        ordered = _ordered(values[~np.isnan(values)])
        at = np.searchsorted(self.low, ordered, side="right") - 1
        return self.merged([Counts.of(ordered[(at >= 0) & (ordered <= self.high[at])])])

    def merged(self, parts: Sequence[Counts]) -> Counts:
        """Add up the counts of several `count`."""
        counts = Counts.joined(parts)
        at = np.searchsorted(self.low, counts.low, side="right") - 1
        return counts.grouped(self.low[at] + ((counts.low - self.low[at] >> self.shift[at]) << self.shift[at]))


@dataclass(frozen=True)
class ValueSketch:
    """Counts of values, with the mean and deviation of the finite ones."""

    counts: Counts
    mean: float
    """NaN or infinite if the sum of the values is not finite."""
    squares: float
    """Sum of the squares of (value - mean)."""
    kind: Kind = _FLOAT
    """The type of the values."""

    @classmethod
    def of(cls, values: Numbers) -> "ValueSketch":
        """Sketch values. NaN is left out."""
        finite = values[np.isfinite(values)].astype(np.float64)
        counts = Counts.of(_ordered(values[~np.isnan(values)]))
        mean = _sum(finite) / max(len(finite), 1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = (finite - mean) ** 2
        return cls(counts.by_leading_bits(values.dtype), mean, _sum(squares), values.dtype)

    @classmethod
    def merged(cls, parts: "Sequence[ValueSketch]") -> "ValueSketch":
        """Merge sketches into one. The moments are merged as in Chan, Golub and LeVeque 1983,
        https://doi.org/10.1080/00031305.1983.10483115."""
        means = [(size, part.mean) for part in parts if (size := part.num_finite)]
        mean = _sum([size * each for size, each in means]) / max(sum(size for size, _ in means), 1)
        moved = [size * (each - mean) * (each - mean) for size, each in means]
        kind = parts[0].kind
        if any(part.kind != kind for part in parts):
            raise TypeError("sketches of different types cannot be merged")
        counts = Counts.joined([part.counts for part in parts]).by_leading_bits(kind)
        return cls(counts, mean, _sum([*(part.squares for part in parts), *moved]), kind)

    def crowded_cells(self) -> Cells:
        """The cells in which the values of crowded buckets must be counted for `split`."""
        return Cells.of(self.counts[self.counts.is_crowded])

    def split(self, counts: Counts) -> "ValueSketch":
        """The sketch with these counts, by cell, instead of the crowded buckets."""
        return replace(self, counts=Counts.joined([self.counts[~self.counts.is_crowded], counts]))

    @property
    def num_values(self) -> int:
        """The number of counted values."""
        return int(self.counts.count.sum())

    @property
    def num_finite(self) -> int:
        """The number of counted values that are finite."""
        return int(self.counts.count[self._is_finite].sum())

    @property
    def is_constant(self) -> bool:
        """Whether all finite values are equal."""
        low, high = self.counts.low[self._is_finite], self.counts.high[self._is_finite]
        return not len(low) or bool(low[0] == high[-1])

    @property
    def _is_finite(self) -> npt.NDArray[np.bool_]:
        """Which buckets have finite values. Infinite ones are in buckets of their own."""
        if self.kind != _FLOAT:
            return np.ones(len(self.counts.low), np.bool_)
        lowest, highest = _ordered(np.array([-np.inf, np.inf]))
        found: npt.NDArray[np.bool_] = (self.counts.low > lowest) & (self.counts.high < highest)
        return found

    def ranks(self, values: Numbers) -> Doubles:
        """For each value, the share of counted values that are lower, from 0 to 1. NaN stays NaN."""
        counts, bits = self.counts, _ordered(values.astype(self.kind))
        below = np.concatenate([[0], np.cumsum(counts.count)]).astype(np.float64)  # [buckets + 1]
        at = np.searchsorted(counts.low, bits, side="right") - 1  # the last bucket that begins at or below the value
        bucket = np.maximum(at, 0)
        low, high = counts.low[bucket], counts.high[bucket]
        numbers = (each[bucket].astype(np.float64) for each in (counts.count, counts.at_low, counts.at_high))
        count, at_low, at_high = numbers
        width = np.maximum(high - low, np.uint64(1)).astype(np.float64)
        between = at_low + (count - at_low - at_high) * ((np.minimum(bits, high) - low).astype(np.float64) / width)
        inside = np.select([bits <= low, bits > high, bits == high], [0.0, count, count - at_high], between)
        found = np.where(at < 0, 0.0, below[bucket] + inside) / self.num_values
        return np.where(np.isnan(values), np.nan, found)

    def zscores(self, values: Numbers) -> Doubles:
        """For each value, (value - mean) / standard deviation of the finite values; 0 if these are all equal."""
        if self.is_constant or self.squares == 0:
            return np.where(np.isfinite(values), 0.0, np.nan)
        return (values.astype(np.float64) - self.mean) / math.sqrt(self.squares / self.num_finite)

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sketch as tensors, for `from_tensors`."""
        counts = {each.name: getattr(self.counts, each.name) for each in fields(Counts)}
        kind = {} if self.kind == _FLOAT else {"kind": np.zeros(1, self.kind)}
        return {**counts, "moments": np.array([self.mean, self.squares]), **kind}

    @classmethod
    def from_tensors(cls, tensors: dict[str, npt.NDArray[np.generic]]) -> "ValueSketch":
        """Load a sketch from tensors, including those of old versions, which did not record the ends of buckets."""
        if "buckets" in tensors:
            return cls._from_old(tensors)
        mean, squares = tensors["moments"].tolist()
        kind = tensors["kind"].dtype if "kind" in tensors else _FLOAT
        return cls(Counts(*(tensors[each.name].astype(np.uint64) for each in fields(Counts))), mean, squares, kind)

    @classmethod
    def _from_old(cls, tensors: dict[str, npt.NDArray[np.generic]]) -> "ValueSketch":
        """Load an old sketch. Ranks are interpolated over the whole width of each bucket, as in the old version."""
        buckets, count = (tensors[name].astype(np.uint64) for name in ("buckets", "counts"))
        low, none = buckets << _SHIFT, np.zeros_like(count)
        first, second = tensors["sums"].tolist()
        total = int(count.sum())
        mean = first / total
        variance = max(0.0, second / total - mean * mean)
        squares = variance * total if math.sqrt(variance) > _OLD_ROUNDING * abs(mean) else 0.0
        return cls(Counts(low, low | ((np.uint64(1) << _SHIFT) - np.uint64(1)), count, none, none), mean, squares)


def _sum(values: Sequence[float] | Doubles) -> float:
    """The exact sum, rounded once; infinite or NaN if it is too large."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # ValueError for inf - inf
        return math.inf


def _ordered(values: Numbers) -> U64:
    """The bits of each number, reordered so that they sort like the numbers."""
    if values.dtype == np.uint64:
        return values.view(np.uint64)
    if values.dtype == np.int64:
        return values.view(np.uint64) ^ _SIGN
    bits = (values + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _as_doubles(ordered: U64, kind: Kind) -> U64:
    """The numbers from `_ordered` for values of a type, as numbers for the nearest float64."""
    if kind == _FLOAT:
        return ordered
    values = ordered if kind == np.uint64 else (ordered ^ _SIGN).view(np.int64)
    return _ordered(values.astype(np.float64))
