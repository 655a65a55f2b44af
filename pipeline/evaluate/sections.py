"""Turns results into text, tables and charts, for the terminal and for the page."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.numbers import fewest_digits
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.evaluate.examples import Doubles
from pairmill.pipeline.evaluate.intervals import percent
from pairmill.pipeline.evaluate.line_chart import LineChart, Values, line_chart, reliability_chart
from pairmill.pipeline.evaluate.page import Section, Table
from pairmill.pipeline.evaluate.probe import Booleans, Probe
from pairmill.pipeline.evaluate.reliability import Bin
from pairmill.pipeline.evaluate.results import (
    OverlapResult,
    ProbeFigures,
    RetrievalResult,
    ThresholdPoint,
    ThresholdResult,
    ZeroShotResult,
)
from pairmill.pipeline.evaluate.retrieval import Ranks
from pairmill.pipeline.evaluate.zero_shot import TOP_K
from pairmill.pipeline.report.axis import four_digits
from pairmill.pipeline.report.charts import BarChart, histogram
from pairmill.pipeline.select.comparisons import decimal_literal

_MAX_K = 20
_SHOWN_CONFUSIONS = 3


def retrieval_section(result: RetrievalResult, to_picture: Ranks, to_text: Ranks) -> Section:
    """The section on retrieval: R@k in both directions."""
    directions = (("caption to picture", result.text_to_picture), ("picture to caption", result.picture_to_text))
    rows = [
        [
            name.split()[0],
            f"{each.queries:,}",
            *(f"{100 * share:.1f} %" for share in (each.recall_at_1, each.recall_at_5, each.recall_at_10)),
            f"{each.median_rank:g}",
            f"{each.tied:,}",
        ]
        for name, each in directions
    ]
    most = range(1, min(_MAX_K, max(result.pictures, result.captions)) + 1)
    curves = [
        Values(name, [ranks.recall_at(k) for k in most])
        for (name, _), ranks in zip(directions, (to_picture, to_text), strict=True)
    ]
    return Section(
        "Retrieval",
        "How often a caption finds its picture among all pictures, and a picture finds one of its captions among all "
        "captions: R@k is the share of queries with a match among the k most similar items.",
        [
            f"{counted(result.pictures, 'picture')} with {counted(result.captions, 'caption')}; mean R@1 "
            f"{100 * result.mean_recall_at_1:.1f} %"
        ],
        result.notes,
        [line_chart("Share of queries with a match in the top k", "R@k in both directions", "k", list(most), curves)],
        tables=[Table("Retrieval", ["query", "number", "R@1", "R@5", "R@10", "median rank", "tied"], rows)],
    )


def zero_shot_section(result: ZeroShotResult) -> Section:
    """The section on zero-shot classification: accuracy, overall and per class, and confusions."""
    has_top5 = result.classes > TOP_K  # with up to five classes, the right class is always in the top five
    accuracy = [f"top-1 {percent(round(result.top1 * result.rows), result.rows)}"]
    accuracy += [f"top-5 {percent(round(result.top5 * result.rows), result.rows)}"] if has_top5 else []
    classes = [
        [each.name, f"{each.rows:,}", percent(each.top1, each.rows)]
        + ([f"{100 * each.top5 / each.rows:.1f} %"] if has_top5 else [])
        for each in result.per_class
    ]
    heads = ["class", "rows", "top-1", *(["top-5"] if has_top5 else [])]
    confusions = [[each.true, each.predicted, f"{each.count:,}"] for each in result.confusions]
    shares = np.array([each.top1 / each.rows for each in result.per_class])
    chart = histogram("Top-1 accuracy of the classes", [shares], ["classes"])
    return Section(
        "Zero-shot classification",
        "The predicted class of a picture is the one whose prompts are most similar to it.",
        [
            f"{', '.join(accuracy)}, mean of the classes {100 * result.mean_per_class:.1f} %",
            f"{counted(result.rows, 'picture')} in {len(result.per_class):,} of {counted(result.classes, 'class')}",
            *([] if result.overlap is None else _overlap_lines(result.overlap)),
        ],
        result.notes,
        bar_charts=[chart] if chart else [],
        tables=[
            Table("Classes, lowest accuracy first", heads, classes),
            Table("Most frequent confusions", ["class", "mistaken for", "rows"], confusions, num_names=2),
        ],
    )


def _overlap_lines(found: OverlapResult) -> list[str]:
    overlap = _with_interval(found.accuracy_overlap, found.overlap_interval)
    return [
        f"without the {counted(found.rows, 'picture')} of the overlap, top-1 is {100 * found.accuracy_clean:.1f} % "
        f"(the overlap adds {100 * found.difference:+.2f} points)",
        f"on the overlap, top-1 is {overlap}, 99.5 % interval; probability of at least this accuracy if the overlap "
        f"were like the other pictures: {found.p_value:.3g}",
    ]


def threshold_section(result: ThresholdResult, kind: pa.DataType) -> Section:
    """The section on a score of this type: precision and recall at its thresholds."""
    rows = [
        [
            shortest(each.threshold, kind),
            f"{each.kept:,}",
            _with_interval(each.precision, each.precision_interval),
            _with_interval(each.recall, each.recall_interval),
        ]
        for each in result.points
    ]
    return Section(
        f"{result.score} against labels",
        f"Precision is the share of {result.positive!r} among the labeled pairs that a threshold keeps; recall is the "
        f"share of all pairs labeled {result.positive!r} that it keeps.",
        [
            f"{counted(result.rows, 'labeled pair')}, {100 * result.positives / result.rows:.1f} % {result.positive}; "
            f"ROC AUC {result.auc:.3f}, average precision {result.average_precision:.3f}",
            _found_line(result, kind, result.found, ""),
            _found_line(result, kind, result.found_certain, " even at the low end of its interval"),
        ],
        result.notes,
        _threshold_charts(result),
        tables=[Table("Thresholds", [f"{result.score} >=", "kept", "precision", "recall"], rows)],
    )


def _threshold_charts(result: ThresholdResult) -> list[LineChart]:
    """Precision and recall over the finite thresholds; no chart if there are none."""
    points = [each for each in result.points[::-1] if math.isfinite(each.threshold)]
    if not points:
        return []
    lines = [
        Values("precision", [each.precision for each in points], *_ends([each.precision_interval for each in points])),
        Values("recall", [each.recall for each in points], *_ends([each.recall_interval for each in points])),
    ]
    marked = result.found.threshold if result.found and result.found in points else None
    chart = line_chart(
        "Precision and recall", "Precision and recall with their 95 % intervals; the numbers are in the table below",
        f"{result.score} at least", [each.threshold for each in points], lines, marked,
    )  # fmt: skip
    return [chart]


def probe_section(figures: ProbeFigures, probe: Probe, is_positive: Booleans) -> Section:
    """The section on a probe: accuracy and calibration of its out-of-fold predictions."""
    name = figures.positive
    dots = [(each.predicted, each.observed, each.interval, _bin_label(each, name)) for each in figures.reliability]
    exponents = sorted(probe.losses)
    rows = [[f"{10**-each:.3g}", f"{probe.losses[each]:.4f}"] for each in exponents]
    bins = [
        [
            f"{each.low:.1f} to {each.high:.1f}",
            f"{each.count:,}",
            f"{100 * each.predicted:.1f} %",
            percent(each.hits, each.count),
        ]
        for each in figures.reliability
    ]
    return Section(
        "Predictions for pairs that the probe has not seen",
        "Every number comes from cross-validation: a pair is predicted by a probe that was trained without the pair's "
        "fold, with a penalty that was chosen without it. Intervals are 95 % Wilson intervals.",
        probe_lines(figures),
        figures.notes,
        [
            reliability_chart(
                "Reliability",
                "Observed share over predicted probability, with 95 % intervals",
                f"predicted probability of {name}",
                dots,
            )
        ],
        _probabilities(probe.probabilities, is_positive, name),
        [
            Table("Reliability", ["predicted", "examples", "mean predicted", f"share {name}"], bins),
            Table("Strength of the penalty", ["C", "log loss out of fold"], rows),
        ],
    )


def probe_lines(figures: ProbeFigures) -> list[str]:
    """The main results of a probe, as lines."""
    hits = round(figures.accuracy * figures.examples)
    return [
        f"accuracy {percent(hits, figures.examples)} out of fold; always predicting the more frequent label: "
        f"{100 * figures.baseline:.1f} %",
        f"ROC AUC {figures.auc:.3f}; correct for {100 * figures.recall:.1f} % of {figures.positive} and "
        f"{100 * figures.specificity:.1f} % of the other examples",
        f"C {four_digits(figures.c)}, log loss {figures.log_loss:.3f}, calibration error "
        f"{100 * figures.calibration_error:.1f} %",
    ]


def shortest(threshold: float | int, kind: pa.DataType) -> str:
    """The fewest digits that identify a threshold for scores of this type in an expression."""
    if isinstance(threshold, int):
        return str(threshold)
    if math.isinf(threshold):
        return "1e999" if threshold > 0 else "-1e999"  # the expression has no name for infinity
    digits = fewest_digits(threshold, kind)
    is_rounded = pa.types.is_decimal(decimal_literal(digits).type)  # to the type of the column, in an expression
    return digits if is_rounded else repr(float(threshold))


def _probabilities(probabilities: Doubles, is_positive: Booleans, name: str) -> list[BarChart]:
    chart = histogram(
        "Predicted probabilities", [probabilities[is_positive], probabilities[~is_positive]], [name, "others"]
    )
    return [chart] if chart else []


def _bin_label(each: Bin, name: str) -> str:
    return f"predicted {each.predicted:.1%}, {name} {each.observed:.1%} of {counted(each.count, 'example')}"


def _ends(intervals: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [low for low, _ in intervals], [high for _, high in intervals]


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _found_line(result: ThresholdResult, kind: pa.DataType, found: ThresholdPoint | None, how: str) -> str:
    goal = f"precision {100 * result.wanted_precision:g} %{how}"
    if found is None:
        return f"{goal}: no threshold reaches it"
    return (
        f"{goal}: {result.score} >= {shortest(found.threshold, kind)}, precision "
        f"{_with_interval(found.precision, found.precision_interval)}, recall "
        f"{_with_interval(found.recall, found.recall_interval)}"
    )
