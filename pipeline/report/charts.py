"""Turns numbers into the geometry of charts, which templates draw as SVG. Nothing here knows HTML.

All charts have the same box, WIDTH x HEIGHT in SVG user units, with the plot inside margins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.text import counted

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 24, 32
"""Margins around the plot."""
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

Numbers = npt.NDArray[np.float64] | npt.NDArray[np.float32]
_MAX_BARS, _MAX_TICKS = 48, 6
_CHAR_WIDTH = 8
"""Of a label, at most."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    series: int
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """A stacked bar, and its numbers."""

    x: float
    width: float
    label: str
    """The interval, such as `0.25 to 0.26`."""
    counts: Sequence[int]
    """One per series."""
    segments: Sequence[Segment]


@dataclass(frozen=True)
class Marker:
    """A vertical line with a label, such as a threshold."""

    x: float
    label: str
    at_end: bool
    """Whether the label ends at the line, because there is no room behind it."""


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
    """A row of a curve's table."""

    threshold: str
    share: float
    count: int


@dataclass(frozen=True)
class Curve:
    """Threshold -> share of the pairs at or above it."""

    title: str
    path: str
    """`x,y x,y ...` of the line."""
    area: str
    """The same, closed along the axis."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    points: Sequence[CurvePoint]
    """At round thresholds."""
    marker: Marker | None


class Axis:
    """Maps values to x positions."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, value: float) -> float:
        """Position of a value."""
        return LEFT + PLOT_WIDTH * (value - self.low) / (self.high - self.low)

    def ticks(self, whole: bool = False) -> list[Tick]:
        """A few round values, or round whole numbers."""
        if whole and self.high - self.low < _MAX_TICKS:
            values = [(float(value), f"{value:,}") for value in range(math.ceil(self.low), math.floor(self.high) + 1)]
        else:
            values = _that_fit(self.low, self.high)
        return [Tick(round(self.x(value), 1), text) for value, text in values]


def _that_fit(low: float, high: float) -> list[tuple[float, str]]:
    """`round_values` whose labels do not touch each other."""
    for most in range(_MAX_TICKS, 1, -1):
        values = round_values(low, high, most)
        if sum(_CHAR_WIDTH * (len(text) + 1) for _, text in values) <= PLOT_WIDTH:
            break
    return values


def round_step(span: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that fits at most `most` times into the span."""
    smallest = span / most
    power = 10.0 ** math.floor(math.log10(smallest))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= smallest * (1 - 1e-9))


def round_values(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """(value, label) of at most `most` + 1 multiples of a round step between low and high."""
    step = round_step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = -math.floor(math.log10(step) + 1e-9)
    values = [round(number * step, decimals) for number in range(first, last + 1)]  # 0.7, where 7 * 0.1 is above it
    return [(value, label(value, step)) for value in values]


def label(value: float, step: float) -> str:
    """The value with as many decimals as the step has; thousands have commas. Very large and very small numbers have
    exponents."""
    power = math.floor(math.log10(step) + 1e-9)
    largest = max(abs(value), step)
    if largest >= 1e9 or power < -6:
        digits = max(0, math.floor(math.log10(largest) + 1e-9) - power)
        text = f"{value:.{digits}e}".replace("e+", "e") if abs(value) > step / 2 else "0"
    else:
        text = f"{value:,.{max(0, -power)}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def four_digits(value: float) -> str:
    """A score or a threshold in four digits."""
    return f"{value:.4g}".replace("-", "−")


def short_count(count: float) -> str:
    """`950`, `1.2k`, `35M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            text = f"{count / size:.1f}"
            return text.removesuffix(".0") + unit
    return f"{count:.0f}"


def limits(values: Numbers, cut: float) -> tuple[float, float] | None:
    """(low, high) of finite values, without the `cut` share at each end; None if there are none."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return None
    low, high = np.quantile(finite, [cut, 1 - cut])
    return float(low), float(high)


def _axis_limits(low: float, high: float, threshold: float | None) -> tuple[float, float]:
    """Limits that include the threshold. Around a single value, there is room on both sides."""
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if high > low:
        return low, high
    room = abs(low) / 10 or 0.5
    return low - room, high + room


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
        series: Their names.
        threshold: Where to draw a line.
        whole: Whether the values are whole numbers, so that no bar is narrower than 1.
        cut: Share of the values at each end that go into the first and the last bar.
    """
    together = np.concatenate([np.asarray(each, np.float64) for each in values])
    ends = limits(together, cut)
    if ends is None:
        return None
    low, high = ends if whole and threshold is None else _axis_limits(*ends, threshold)
    step = round_step(max(high - low, 1e-6 * abs(high), 1e-300), _MAX_BARS)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.floor(high / step + 1e-9)
    edges: Numbers = np.arange(first, last + 2).astype(np.float64) * step
    finite = [each[np.isfinite(each)].astype(np.float64) for each in values]
    bins = [np.clip(np.floor(each / step + 1e-6), first, last).astype(np.int64) - first for each in finite]
    counts = np.stack([np.bincount(each, minlength=last - first + 1) for each in bins])
    axis = Axis(float(edges[0]), float(edges[-1]))
    labels = [f"{label(a, step)} to {label(b, step)}" for a, b in pairwise(edges)]
    if whole and step == 1:
        labels = [label(a, step) for a in edges[:-1]]
    note = ""
    beyond = np.isfinite(together) & ((together < edges[0]) | (together >= edges[-1]))
    if cut and (outside := int(beyond.sum())):
        note = f"The first and the last bar include {counted(outside, 'value')} beyond the axis."
    return bar_chart(title, series, counts, edges, labels, axis.ticks(whole), threshold_marker(axis, threshold), note)


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
    """Ticks of a vertical axis of counts from 0 to `top`."""
    values = [value for value, _ in round_values(0, top, 4)]
    whole = [value for value in values if value == int(value)]
    return [Tick(round(TOP + PLOT_HEIGHT * (1 - value / top), 1), short_count(value)) for value in whole]


def threshold_marker(axis: Axis, threshold: float | None, name: str = "threshold") -> Marker | None:
    """The line of a threshold."""
    if threshold is None:
        return None
    x = axis.x(threshold)
    return Marker(round(x, 1), f"{name} {four_digits(threshold)}", x > LEFT + PLOT_WIDTH / 2)


def what_if(title: str, values: Numbers, total: int, threshold: float | None) -> Curve | None:
    """The share of all pairs whose score is at least each threshold. Pairs without a score are below every threshold.

    `values`: scores of the pairs that were read, NaN for null; `total`: the pairs that these stand for. A threshold is
    rounded to their type, as in `select`: otherwise a float32 of exactly 0.7 would be below 0.7.
    """
    ends = limits(values, 0.001)
    if ends is None:
        return None
    axis = Axis(*_axis_limits(*ends, threshold))
    ordered = np.sort(values[np.isfinite(values)])

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
