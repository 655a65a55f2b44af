"""Turns lines, points and their intervals into the geometry of a chart, in the box of `report/axis.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from pairmill.pipeline.report.axis import PLOT_HEIGHT, TOP, Axis, Tick, drawable
from pairmill.pipeline.report.bins import axis_limits
from pairmill.pipeline.report.charts import Marker, threshold_marker


@dataclass(frozen=True)
class Line:
    """A named line, with an optional band around it."""

    name: str
    path: str
    """The points of the line, as `x,y x,y ...`."""
    band: str
    """The outline of the band in the same form; empty if there is none."""


@dataclass(frozen=True)
class Dot:
    """A point with its interval."""

    x: float
    y: float
    low_y: float
    high_y: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """A chart of shares, from 0 to 100 %, over any numbers."""

    title: str
    about: str
    """Text alternative: what the chart shows."""
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()
    diagonal: str = ""
    """The line from 0 to 100 %, where prediction and truth agree."""
    marker: Marker | None = None


@dataclass(frozen=True)
class Values:
    """The values of a line, all of the same length."""

    name: str
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def line_chart(
    title: str, about: str, x_label: str, x: Sequence[float], values: Sequence[Values], marked: float | None = None
) -> LineChart:
    """A chart of lines over `x`, which is in ascending order. `marked`: the x at which to draw a vertical line."""
    axis = Axis(*axis_limits(drawable(min(x)), drawable(max(x)), marked))
    lines = [Line(each.name, _path(axis, x, each.y), _band(axis, x, each)) for each in values]
    marker = threshold_marker(axis, marked)
    return LineChart(title, about, x_label, axis.ticks(), _share_ticks(), lines, marker=marker)


def reliability_chart(
    title: str, about: str, x_label: str, dots: Sequence[tuple[float, float, tuple[float, float], str]]
) -> LineChart:
    """A chart of observed over predicted shares. `dots`: (predicted, observed, interval of the observed, label)."""
    axis = Axis(0.0, 1.0)
    drawn = [
        Dot(round(axis.x(x), 1), _y(share), _y(interval[0]), _y(interval[1]), label)
        for x, share, interval, label in dots
    ]
    ticks = [Tick(round(axis.x(value), 1), f"{value:.0%}") for value in (0, 0.25, 0.5, 0.75, 1)]
    diagonal = _path(axis, (0, 1), (0, 1))
    return LineChart(title, about, x_label, ticks, _share_ticks(), dots=drawn, diagonal=diagonal)


def _path(axis: Axis, x: Sequence[float], y: Sequence[float]) -> str:
    return " ".join(f"{axis.x(at):.1f},{_y(share)}" for at, share in zip(x, y, strict=True))


def _band(axis: Axis, x: Sequence[float], values: Values) -> str:
    if not values.low:
        return ""
    return f"{_path(axis, x, values.high)} {_path(axis, list(x)[::-1], list(values.low)[::-1])}"


def _y(share: float) -> float:
    return round(TOP + PLOT_HEIGHT * (1 - share), 1)


def _share_ticks() -> list[Tick]:
    return [Tick(_y(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]
