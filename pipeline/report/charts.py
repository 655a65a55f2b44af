"""Turns numbers into the geometry of charts, which the templates draw as SVG. Nothing here depends on HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.report.axis import (
    LEFT,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    TOP,
    Axis,
    Numbers,
    Tick,
    four_digits,
    round_values,
    short_count,
)
from pairmill.pipeline.report.bins import Bins, axis_limits, limits


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    series: int
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """A stacked bar and its counts."""

    x: float
    width: float
    label: str
    """The interval, such as `0.25 to 0.26`."""
    counts: Sequence[int]
    """One count per series."""
    segments: Sequence[Segment]


@dataclass(frozen=True)
class Marker:
    """A vertical line with a label, such as a threshold."""

    x: float
    label: str
    at_end: bool
    """Whether the label ends at the line, because there is no room after it."""


@dataclass(frozen=True)
class BarChart:
    """A histogram, stacked by series."""

    title: str
    series: Sequence[str]
    bars: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marker: Marker | None = None
    note: str = ""


@dataclass(frozen=True)
class CurvePoint:
    """A point in the table of a curve."""

    threshold: str
    share: float
    count: int


@dataclass(frozen=True)
class Curve:
    """A curve of the share of pairs at or above each threshold."""

    title: str
    path: str
    """The points of the line: `x,y x,y ...`."""
    area: str
    """The points of the area between the line and the axis."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    points: Sequence[CurvePoint]
    """Points at round thresholds."""
    marker: Marker | None


def histogram(
    title: str,
    values: Sequence[Numbers],
    series: Sequence[str],
    threshold: float | None = None,
    whole: bool = False,
    cut: float = 0.0,
) -> BarChart | None:
    """A histogram of the finite values of each series, stacked in their order.

    Args:
        title: What the values are.
        values: One array per series.
        series: The names of the series.
        threshold: The value at which to draw a line.
        whole: Whether the values are whole numbers, so that no bar is narrower than 1.
        cut: The share of the values at each end that are counted in the first and last bars.
    """
    bins = Bins.of(values, threshold, whole, cut)
    return None if bins is None else binned(title, values, series, bins, threshold)


def binned(
    title: str, values: Sequence[Numbers], series: Sequence[str], bins: Bins, threshold: float | None = None
) -> BarChart:
    """A histogram with given bins, for example for several charts that share an axis. Values beyond the bins are
    counted in the first and last bins."""
    counts, edges = np.stack([bins.count(each) for each in values]), bins.edges
    axis = Axis(float(edges[0]), float(edges[-1]))
    outside = sum(bins.beyond(each) for each in values)
    note = f"The first and last bars include {counted(outside, 'value')} beyond the axis." if outside else ""
    marker = threshold_marker(axis, threshold)
    return bar_chart(title, series, counts, edges, bins.labels, axis.ticks(bins.whole), marker, note)


def bar_chart(
    title: str,
    series: Sequence[str],
    counts: npt.NDArray[np.int64],
    edges: Numbers,
    labels: Sequence[str],
    x_ticks: Sequence[Tick],
    marker: Marker | None = None,
    note: str = "",
) -> BarChart:
    """Stacked bars. `counts`: (series, bars); `edges`: (bars + 1,), in the units of the x axis."""
    axis = Axis(float(edges[0]), float(edges[-1]))
    top = max(int(counts.sum(axis=0).max()), 1)
    y_ticks = count_ticks(top)
    bars = []
    gap = 1 if len(labels) > 1 else 0
    for index, name in enumerate(labels):
        x, end = axis.x(float(edges[index])), axis.x(float(edges[index + 1]))
        segments, base = [], 0
        for number, count in enumerate(counts[:, index].tolist()):
            if count:
                height = PLOT_HEIGHT * count / top
                y = TOP + PLOT_HEIGHT * (1 - (base + count) / top)
                segments.append(Segment(number, round(y, 2), round(height, 2)))
            base += count
        bars.append(Bar(round(x, 2), round(max(end - x - gap, 0.5), 2), name, counts[:, index].tolist(), segments))
    return BarChart(title, series, bars, x_ticks, y_ticks, marker, note)


def count_ticks(top: int) -> list[Tick]:
    """The ticks of a vertical axis of counts from 0 to `top`."""
    values = [value for value, _ in round_values(0, top, 4)]
    whole = [value for value in values if value == int(value)]
    return [Tick(round(TOP + PLOT_HEIGHT * (1 - value / top), 1), short_count(value)) for value in whole]


def threshold_marker(axis: Axis, threshold: float | None, name: str = "threshold") -> Marker | None:
    """The marker for a threshold; None without a threshold."""
    if threshold is None:
        return None
    x = axis.x(threshold)
    return Marker(round(x, 1), f"{name} {four_digits(threshold)}", x > LEFT + PLOT_WIDTH / 2)


def what_if(title: str, values: Numbers, total: int, threshold: float | None) -> Curve | None:
    """The share of all pairs whose score is at least each threshold. Pairs without a score are below every threshold.

    `values`: the scores of the pairs that were read, NaN for null; `total`: the number of pairs that they represent. A
    threshold is rounded to the type of the scores, as in `select`: otherwise, a float32 score of 0.7 would be below a
    threshold of 0.7.
    """
    ends = limits(values, 0.001)
    if ends is None:
        return None
    axis = Axis(*axis_limits(*ends, threshold))
    ordered = np.sort(values[~np.isnan(values)])

    def share(at: float) -> float:
        with np.errstate(over="ignore"):
            rounded = ordered.dtype.type(at)
        return float(len(ordered) - np.searchsorted(ordered, rounded, "left")) / len(values)

    steps = np.linspace(axis.low, axis.high, 161)
    line = [f"{axis.x(at):.1f},{TOP + PLOT_HEIGHT * (1 - share(at)):.1f}" for at in steps.tolist()]
    base = TOP + PLOT_HEIGHT
    area = f"{LEFT},{base} {' '.join(line)} {LEFT + PLOT_WIDTH},{base}"
    rounds = round_values(axis.low, axis.high, 16)
    points = [CurvePoint(text, share(at), round(share(at) * total)) for at, text in rounds]
    y_ticks = [Tick(round(TOP + PLOT_HEIGHT * (1 - part), 1), f"{part:.0%}") for part in (0, 0.25, 0.5, 0.75, 1)]
    marker = threshold_marker(axis, threshold)
    return Curve(title, " ".join(line), area, axis.ticks(), y_ticks, points, marker)
