"""Computes the precision and recall of a score against labels, at every threshold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from pairmill.pipeline.evaluate.intervals import Interval, wilson

Doubles = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """The labeled rows that `score >= threshold` keeps."""

    threshold: float
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


def roc_auc(scores: Doubles, is_positive: Booleans) -> float:
    """Area under the ROC curve of scores [n] and labels [n] of both kinds: the probability that a positive row has a
    higher score than a negative one."""
    return float(roc_auc_score(is_positive, scores))


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision and recall at every distinct score, from the highest down."""

    thresholds: Doubles
    kept: Counts
    hits: Counts
    auc: float
    average_precision: float

    @classmethod
    def of(cls, scores: Doubles, is_positive: Booleans) -> "ThresholdCurve":
        """The curve for scores [n] without NaN and labels [n] of both kinds."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last row of each distinct score
        hits = np.cumsum(is_positive[order])[ends].astype(np.int64)
        average = float(average_precision_score(is_positive, scores))
        return cls(ordered[ends], ends.astype(np.int64) + 1, hits, roc_auc(scores, is_positive), average)

    def __len__(self) -> int:
        """Number of thresholds."""
        return len(self.thresholds)

    def point(self, index: int) -> Point:
        """The point at the threshold with this index."""
        return Point(float(self.thresholds[index]), int(self.kept[index]), int(self.hits[index]), int(self.hits[-1]))

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
