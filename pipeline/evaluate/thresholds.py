"""Computes the precision and recall of a score against labels, at every threshold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from pairmill.pipeline.evaluate.intervals import Interval, wilson
from pairmill.pipeline.select.comparisons import Numbers

Booleans = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """The labeled rows that `score >= threshold` keeps."""

    threshold: float | int
    kept: int
    hits: int
    """Number of kept rows with the positive label."""
    positives: int
    """Number of labeled rows with the positive label."""

    @property
    def precision(self) -> float:
        """Share of the kept rows that are positive."""
        return self.hits / self.kept

    @property
    def recall(self) -> float:
        """Share of the positive rows that are kept."""
        return self.hits / self.positives

    @property
    def precision_interval(self) -> Interval:
        """95 % interval of the precision."""
        return wilson(self.hits, self.kept)

    @property
    def recall_interval(self) -> Interval:
        """95 % interval of the recall."""
        return wilson(self.hits, self.positives)


def roc_auc(scores: Numbers, is_positive: Booleans) -> float:
    """Area under the ROC curve of scores [n] and labels [n] of both kinds: the probability that a positive row has a
    higher score than a negative one."""
    ranks = np.unique(scores, return_inverse=True)[1]  # scikit-learn refuses infinite scores
    return float(roc_auc_score(is_positive, ranks))


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision and recall at every distinct score, from the highest down."""

    thresholds: Numbers
    kept: Counts
    hits: Counts
    auc: float
    average_precision: float

    @classmethod
    def of(cls, scores: Numbers, is_positive: Booleans) -> "ThresholdCurve":
        """The curve for scores [n] without NaN and labels [n] of both kinds."""
        distinct, ranks = np.unique(scores, return_inverse=True)
        rows, hits = np.bincount(ranks), np.bincount(ranks[is_positive], minlength=len(distinct))
        average = float(average_precision_score(is_positive, ranks))
        auc = roc_auc(ranks, is_positive)
        return cls(distinct[::-1], np.cumsum(rows[::-1]), np.cumsum(hits[::-1]), auc, average)

    def __len__(self) -> int:
        """Number of thresholds."""
        return len(self.thresholds)

    def point(self, index: int) -> Point:
        """The point at the threshold with this index."""
        return Point(self.thresholds[index].item(), int(self.kept[index]), int(self.hits[index]), int(self.hits[-1]))

    def spread(self, most: int) -> list[int]:
        """At most `most` indices, evenly spaced by the number of rows that their thresholds keep. The last threshold
        keeps all rows."""
        wanted = np.ceil(np.linspace(0, self.kept[-1], most + 1)[1:])
        return [int(index) for index in np.unique(np.searchsorted(self.kept, wanted))]

    def for_precision(self, precision: float, is_certain: bool = False) -> int | None:
        """Index of the lowest threshold with at least this precision, which has the highest recall; None if there is
        none. With `is_certain`, the lower end of the 95 % interval must also reach this precision."""
        for index in np.flatnonzero(self.hits / self.kept >= precision)[::-1].tolist():
            if not is_certain or self.point(index).precision_interval.low >= precision:
                return int(index)
        return None
