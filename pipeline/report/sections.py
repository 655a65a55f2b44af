"""Makes the parts of the page from a summary: charts, tables and lists."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.dataset.subset import Weights
from pairmill.pipeline.report.axis import LEFT, PLOT_WIDTH, Tick
from pairmill.pipeline.report.charts import BarChart, Curve, bar_chart, histogram, what_if
from pairmill.pipeline.report.summary import ASPECT, CHARS, SIDE, WORDS, Summary
from pairmill.schemas.status import Status

MAX_HOSTS, MAX_COUNTS, MAX_SERIES, TIME_BINS = 50, 20, 5, 48
_ASPECTS = (
    (0.5, "taller than 1:2"),
    (0.7, "1:2 to 2:3"),
    (0.95, "2:3 to square"),
    (1.05, "square"),
    (1.45, "square to 3:2"),
    (2.0, "3:2 to 2:1"),
    (np.inf, "wider than 2:1"),
)


@dataclass(frozen=True)
class ScorePanel:
    """The charts of one score."""

    name: str
    scored: int
    """Number of pairs with this score, among those that were read."""
    unscored: int
    """Number of pairs that were read whose score is null, NaN or infinite."""
    chart: BarChart | None
    curve: Curve | None


@dataclass(frozen=True)
class CountRow:
    """A value and its number of rows."""

    name: str
    rows: int
    share: float


@dataclass(frozen=True)
class Counts:
    """A table of counts."""

    title: str
    rows: Sequence[CountRow]
    more: int = 0
    """Number of values that are not in the table."""


@dataclass(frozen=True)
class HostRow:
    """A host and what happened to its rows."""

    name: str
    rows: int
    chosen: int
    share: float
    """The share of its rows that are kept or, for a subset, in the subset."""
    main_loss: str
    main_loss_rows: int


@dataclass(frozen=True)
class TimeLine:
    """The number of rows over time, by outcome."""

    chart: BarChart
    first: str
    last: str
    rows_per_second: float


def score_panels(
    summary: Summary, scores: Sequence[str], thresholds: Mapping[str, float], pairs: int, series: Sequence[str]
) -> list[ScorePanel]:
    """The charts of each score. `pairs`: all pairs of the dataset; `series`: the names of (chosen, other) pairs."""
    chosen, panels = summary.is_chosen(), []
    for name in scores:
        values = summary.number(name)
        threshold = thresholds.get(name)
        chart = histogram(name, [values[chosen], values[~chosen]], series, threshold, cut=0.0005)
        curve = what_if(name, values, pairs, threshold)
        scored = int(np.isfinite(values).sum())
        panels.append(ScorePanel(name, scored, len(values) - scored, chart, curve))
    return panels


def weight_chart(weights: Sequence[Weights]) -> Iterator[BarChart]:
    """A histogram of the rows' weights, if there are any."""
    chart = histogram("Times per epoch (weight)", [np.concatenate([np.zeros(0, np.float32), *weights])], ["rows"])
    if chart is not None:
        yield chart


def shape_charts(summary: Summary, series: Sequence[str]) -> list[BarChart]:
    """Histograms of the sizes of pictures and the lengths of captions."""
    chosen = summary.is_chosen()
    charts = []
    for name, title in ((SIDE, "Longer side of the original picture, in pixels"), (CHARS, "Characters in the caption"),
                        (WORDS, "Words in the caption")):  # fmt: skip
        values = summary.number(name).astype(np.float64)
        charts.append(histogram(title, [values[chosen], values[~chosen]], series, whole=True, cut=0.005))
    return [chart for chart in charts if chart is not None]


def aspects(summary: Summary) -> Counts | None:
    """A table of aspect ratios, width to height; None if no pair has one."""
    values = summary.number(ASPECT)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    bins = np.bincount(np.digitize(values, [edge for edge, _ in _ASPECTS[:-1]]), minlength=len(_ASPECTS))
    return counts(
        "Aspect ratio, width to height",
        dict(zip([name for _, name in _ASPECTS], bins.tolist(), strict=True)),
        ordered=False,
    )


def counts(title: str, values: Mapping[str, int], ordered: bool = True) -> Counts | None:
    """A table of the most frequent values or, if not `ordered`, of the values as given; None if there are no rows."""
    total = sum(values.values())
    if not total:
        return None
    found = Counter(values).most_common() if ordered else list(values.items())
    rows = [CountRow(name, rows, rows / total) for name, rows in found[:MAX_COUNTS]]
    return Counts(title, rows, len(found) - len(rows))


def hosts(summary: Summary) -> list[HostRow]:
    """The hosts with the most rows."""
    ordered = sorted(summary.hosts.items(), key=lambda item: (-item[1].rows, item[0]))[:MAX_HOSTS]
    found = []
    for name, count in ordered:
        losses = Counter({status: rows for status, rows in count.statuses.items() if status != Status.OK})
        loss, rows = losses.most_common(1)[0] if losses else ("", 0)
        found.append(HostRow(name, count.rows, count.chosen, count.chosen / count.rows, loss, rows))
    return found


def time_line(summary: Summary) -> TimeLine | None:
    """The rows over time; None if no row has a time or all have the same time."""
    times = np.concatenate([np.empty(0, np.int64), *summary.times])
    if not times.size or times.min() == times.max():
        return None
    outcomes = np.concatenate(summary.outcomes)
    names, codes = _series(outcomes)
    first, last = int(times.min()), int(times.max())
    edges = np.linspace(first, last, TIME_BINS + 1)
    bins = np.clip(((times - first) * TIME_BINS // (last - first)), 0, TIME_BINS - 1)
    table = np.stack([np.bincount(bins[codes == number], minlength=TIME_BINS) for number in range(len(names))])
    labels = [f"{_time(a, last - first)} to {_time(b, last - first)}" for a, b in pairwise(edges)]
    chart = bar_chart(
        "Rows over time, by outcome", names, table, (edges - first) / 1e6, labels, _time_ticks(first, last)
    )
    return TimeLine(chart, _moment(first), _moment(last), len(times) / ((last - first) / 1e6))


def _series(outcomes: npt.NDArray[np.int32]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(names of the series, series number of each row): kept, the most frequent losses, and all other losses."""
    statuses = list(Status)
    ok = statuses.index(Status.OK)
    frequent = [code for code, _ in Counter(outcomes[outcomes != ok].tolist()).most_common(MAX_SERIES - 1) if code >= 0]
    series = np.full(len(outcomes), len(frequent) + 1, np.int64)
    for number, code in enumerate([ok, *frequent]):
        series[outcomes == code] = number
    names = ["kept", *(statuses[code].replace("_", " ") for code in frequent)]
    return ([*names, "other losses"] if (series == len(names)).any() else names), series


def _time_ticks(first: int, last: int) -> list[Tick]:
    parts = (0.08, 0.36, 0.64, 0.92)  # not at the ends, where labels would be cut off
    return [Tick(LEFT + PLOT_WIDTH * part, _time(first + part * (last - first), last - first)) for part in parts]


def _time(at: float, span: int) -> str:
    """A time, as precise as the span of the axis (in µs) requires."""
    form = (
        "%d %b %Y"
        if span > 5 * 86_400e6
        else "%d %b %H:%M"
        if span > 86_400e6
        else "%H:%M"
        if span > 600e6
        else "%H:%M:%S"
    )
    return datetime.fromtimestamp(at / 1e6, UTC).strftime(form)


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%d %B %Y, %H:%M:%S UTC").lstrip("0")
