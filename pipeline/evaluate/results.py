"""Defines the results of each evaluation, as `--json` prints them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pairmill.pipeline.evaluate.intervals import Interval
from pairmill.pipeline.evaluate.reliability import Bin


@dataclass(frozen=True)
class Direction:
    """Retrieval in one direction."""

    queries: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    tied: int
    """Number of queries with other items exactly as similar as the match. Ties count in favor of the match."""


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval in both directions."""

    pictures: int
    captions: int
    text_to_picture: Direction
    picture_to_text: Direction
    mean_recall_at_1: float
    """Mean of both directions, as in DataComp's metric."""
    notes: Sequence[str]


@dataclass(frozen=True)
class ClassAccuracy:
    """One class that occurs among the labels."""

    name: str
    rows: int
    top1: int
    top5: int
    interval: Interval
    """95 % interval of the top-1 accuracy."""


@dataclass(frozen=True)
class NamedConfusion:
    """The number of pictures of one class that were mistaken for another class."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True)
class OverlapResult:
    """Top-1 accuracy with and without the pictures that overlap with a training set (CLIP's paper, section 5)."""

    rows: int
    """Number of labeled pictures in the overlap."""
    clean_rows: int
    """Number of labeled pictures outside the overlap."""
    accuracy_all: float
    accuracy_clean: float
    accuracy_overlap: float
    overlap_interval: Interval
    """99.5 % Clopper-Pearson interval of the accuracy on the overlap."""
    difference: float
    """Accuracy on all pictures minus accuracy on the clean pictures: how much the overlap seems to add."""
    p_value: float
    """The probability of at least this accuracy on the overlap if it were as difficult as the clean pictures."""


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot classification."""

    classes: int
    rows: int
    top1: float
    top1_interval: Interval
    top5: float
    top5_interval: Interval
    mean_per_class: float
    """Mean of the top-1 accuracies of the classes that occur."""
    per_class: Sequence[ClassAccuracy]
    """Lowest accuracy first."""
    confusions: Sequence[NamedConfusion]
    """Most frequent first."""
    notes: Sequence[str]
    overlap: OverlapResult | None = None


@dataclass(frozen=True)
class ThresholdPoint:
    """The labeled rows that `score >= threshold` keeps."""

    threshold: float | int
    """An integer if the scores are integers."""
    kept: int
    precision: float
    precision_interval: Interval
    recall: float
    recall_interval: Interval


@dataclass(frozen=True)
class ThresholdResult:
    """A score, measured against labels."""

    score: str
    positive: str
    """The label for which the score should be high."""
    rows: int
    positives: int
    auc: float
    average_precision: float
    points: Sequence[ThresholdPoint]
    """Highest threshold first."""
    wanted_precision: float
    found: ThresholdPoint | None
    """The lowest threshold with the wanted precision."""
    found_certain: ThresholdPoint | None
    """The lowest threshold where even the lower end of the interval reaches the wanted precision."""
    notes: Sequence[str]


@dataclass(frozen=True)
class ProbeFigures:
    """Measures of a probe's out-of-fold predictions."""

    positive: str
    examples: int
    positives: int
    c: float
    """scikit-learn's C, 1 / lambda."""
    has_converged: bool
    accuracy: float
    accuracy_interval: Interval
    baseline: float
    """Accuracy of always predicting the more frequent label."""
    recall: float
    """Accuracy among the examples with the positive label."""
    specificity: float
    """Accuracy among all other examples."""
    auc: float
    log_loss: float
    calibration_error: float
    reliability: Sequence[Bin]
    notes: Sequence[str]
