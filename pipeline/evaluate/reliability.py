"""Compares predicted probabilities with the observed shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.evaluate.intervals import Interval, wilson

BINS = 10
_MOST_WIDTH, _OTHER_WIDTH = 40, len("0.0 to 0.1   100,000  100.0 % []") + 1
"""The width of a diagram from 0 to 100 %, and of the text beside it."""


@dataclass(frozen=True)
class Bin:
    """The examples whose predicted probability is in one tenth of [0, 1]."""

    low: float
    high: float
    count: int
    predicted: float
    """Mean predicted probability."""
    hits: int
    """Number of examples with the positive label."""

    @property
    def observed(self) -> float:
        """Share of the positive label."""
        return self.hits / self.count

    @property
    def interval(self) -> Interval:
        """95 % interval of the share."""
        return wilson(self.hits, self.count)


def reliability(probabilities: npt.NDArray[np.float64], is_positive: npt.NDArray[np.bool_]) -> list[Bin]:
    """The nonempty bins of probabilities [n] and labels [n]; the last bin includes 1."""
    index = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    bins = []
    for number in np.unique(index).tolist():
        inside = index == number
        predicted, hits = float(probabilities[inside].mean()), int(is_positive[inside].sum())
        bins.append(Bin(number / BINS, (number + 1) / BINS, int(inside.sum()), predicted, hits))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance between predicted probability and observed share, weighted by the number of examples in each
    bin: ECE (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al. 2017, 1706.04599)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.predicted - each.observed) for each in bins) / total


def reliability_lines(bins: Sequence[Bin], name: str, columns: int) -> list[str]:
    """The reliability diagram as text, in up to that many columns. `o` is the observed share of the label `name`, `-`
    its interval, and `|` the mean predicted probability."""
    width = max(1, min(_MOST_WIDTH, columns - _OTHER_WIDTH))  # a terminal can be narrower than the rest of a line
    rows = [f"predicted   examples  share {name}, 0 to 100 % (o, with its interval -; predicted |)"]
    for each in bins:
        scale = list(" " * (width + 1))
        low, high = (round(width * end) for end in each.interval)
        scale[low : high + 1] = "-" * (high - low + 1)
        scale[round(width * each.predicted)] = "|"
        scale[round(width * each.observed)] = "o"
        rows.append(
            f"{each.low:.1f} to {each.high:.1f}  {each.count:>8,}  {100 * each.observed:>5.1f} % [{''.join(scale)}]"
        )
    return rows
