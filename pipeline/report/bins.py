"""Divides an axis into equal bins that begin at round numbers, for one histogram or for several that share an axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.report.axis import LARGEST, Numbers, drawable, label, round_step

_MAX_BARS = 48


def limits(values: Numbers, cut: float) -> tuple[float, float] | None:
    """(low, high) of the finite values, ignoring the share `cut` at each end; None if there are no finite values."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return None
    low, high = np.quantile(np.clip(finite, -LARGEST, LARGEST), [cut, 1 - cut])
    return float(low), float(high)


def axis_limits(low: float, high: float, threshold: float | None) -> tuple[float, float]:
    """Limits that include the threshold, with room on both sides of a single value."""
    if threshold is not None:
        low, high = min(low, drawable(threshold)), max(high, drawable(threshold))
    if high > low:
        return low, high
    room = abs(low) / 10 or 0.5
    return low - room, high + room


@dataclass(frozen=True)
class Bins:
    """Equal bins. Bin n, from `first` to `last`, covers the values from n * `step` to (n + 1) * `step`."""

    step: float
    first: int
    last: int
    whole: bool
    """Whether the values are whole numbers."""
    includes_rest: bool
    """Whether values can be beyond the bins; such values are counted in the first and last bins."""

    @classmethod
    def of(
        cls, values: Sequence[Numbers], threshold: float | None = None, whole: bool = False, cut: float = 0.0
    ) -> "Bins | None":
        """The bins for the finite values of all arrays combined; None if there are none. `threshold`: a value that the
        bins must include; `cut`: the share of the values at each end that can be beyond the bins."""
        return cls._between([limits(np.concatenate([np.asarray(each, np.float64) for each in values]), cut)],
                            threshold, whole, cut)  # fmt: skip

    @classmethod
    def shared(cls, values: Sequence[Numbers], cut: float = 0.0) -> "Bins | None":
        """The bins for several charts. At most the share `cut` of each array is beyond them at each end, regardless of
        its size."""
        return cls._between([limits(each, cut) for each in values], None, False, cut)

    @classmethod
    def _between(
        cls, ends: Sequence[tuple[float, float] | None], threshold: float | None, whole: bool, cut: float
    ) -> "Bins | None":
        found = [each for each in ends if each is not None]
        if not found:
            return None
        low, high = min(low for low, _ in found), max(high for _, high in found)
        if not whole or threshold is not None:
            low, high = axis_limits(low, high, threshold)
        step = round_step(max(high - low, 1e-6 * abs(high)), _MAX_BARS)
        step = max(step, 1.0) if whole else step
        return cls(step, math.floor(low / step + 1e-9), math.floor(high / step + 1e-9), whole, cut > 0)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The start of each bin, and the end of the last one; shape (bins + 1,)."""
        return np.arange(self.first, self.last + 2).astype(np.float64) * self.step

    @property
    def labels(self) -> list[str]:
        """The interval of each bin, or its value if it covers a single whole number."""
        if self.whole and self.step == 1:
            return [label(edge, self.step) for edge in self.edges[:-1].tolist()]
        return [f"{label(a, self.step)} to {label(b, self.step)}" for a, b in pairwise(self.edges.tolist())]

    def count(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The number of finite values in each bin; shape (bins,)."""
        found = np.clip(self._numbers(values), self.first, self.last).astype(np.int64) - self.first
        return np.bincount(found, minlength=self.last - self.first + 1)

    def beyond(self, values: Numbers) -> int:
        """The number of finite values beyond the bins."""
        numbers = self._numbers(values)
        is_beyond = (numbers < self.first) | (numbers > self.last)
        return int(is_beyond.sum()) if self.includes_rest else 0

    def _numbers(self, values: Numbers) -> npt.NDArray[np.float64]:
        """The bin number of each finite value. A value that is below an edge only because of rounding counts as on the
        edge."""
        wide = np.asarray(values, np.float64)
        with np.errstate(over="ignore"):  # a number of a bin can be infinite if the bins are tiny
            numbers: npt.NDArray[np.float64] = np.floor(wide[np.isfinite(wide)] / self.step + 1e-6)
        return numbers
