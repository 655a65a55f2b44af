"""Tests the numbers behind charts: every value is in one bar, the heights of bars match their counts, and ticks are
round numbers."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pairmill.pipeline.evaluate.line_chart import Values, line_chart
from pairmill.pipeline.explore.summary import describe
from pairmill.pipeline.report.axis import LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, label, round_values, short_count
from pairmill.pipeline.report.bins import Bins
from pairmill.pipeline.report.charts import binned, histogram, what_if

FLOATS = st.lists(st.floats(width=32), max_size=40)
"""Any float32, including infinities and NaN."""


@given(
    chosen=FLOATS,
    other=FLOATS,
    threshold=st.none() | st.floats(-100, 100),
    cut=st.sampled_from([0.0, 0.0005, 0.1, 0.3]),
)
@example(chosen=[], other=[0.0, 0.0, 0.0, 0.0, 8988466.0], threshold=2.225073858507e-311, cut=0.3)
def test_every_finite_value_is_in_one_bar_and_heights_match_counts(
    chosen: list[float], other: list[float], threshold: float | None, cut: float
) -> None:
    values = [np.array(chosen, np.float64), np.array(other, np.float64)]
    chart = histogram("x", values, ("a", "b"), threshold, cut=cut)
    finite = [int(np.isfinite(each).sum()) for each in values]
    if chart is None:
        assert not any(finite)
        return
    assert [sum(bar.counts[series] for bar in chart.bars) for series in (0, 1)] == finite
    assert len(chart.bars) <= 52
    most = max(sum(bar.counts) for bar in chart.bars)
    for bar in chart.bars:
        assert bar.x >= LEFT - 0.1 and bar.x + bar.width <= LEFT + PLOT_WIDTH + 0.6
        for part in bar.segments:
            assert part.height == pytest.approx(PLOT_HEIGHT * bar.counts[part.series] / most, abs=0.01)
            assert part.y >= TOP - 0.01
    assert chart.marker is None or LEFT - 0.1 <= chart.marker.x <= LEFT + PLOT_WIDTH + 0.1


@pytest.mark.parametrize("value", [0.0, 0.28, 0.3, 5.0, -0.1, 1e6, 1.7e18, -1e30, 3e38, 1e-40])
def test_a_single_distinct_value_still_gets_charts(value: float) -> None:
    values = np.full(3, value, np.float32)
    chart = histogram("x", [values, np.array([])], ("a", "b"))
    assert chart and [bar.counts for bar in chart.bars if bar.segments] == [[3, 0]]
    curve = what_if("x", values, 3, None)
    assert curve and curve.path.startswith(f"{LEFT:.1f},{TOP:.1f} ") and len(curve.x_ticks) >= 2
    for ticks in (chart.x_ticks, curve.x_ticks):
        assert 2 <= len(ticks) <= 7 and 7 * sum(len(tick.label) for tick in ticks) <= PLOT_WIDTH


@pytest.mark.parametrize("values", [[-1.7e308, 0, 1.7e308], [0, 5e-324, 1e-323]])
@pytest.mark.parametrize("threshold", [None, math.inf, -math.inf, 1.7e308])
def test_any_finite_values_and_any_threshold_can_be_drawn(values: list[float], threshold: float | None) -> None:
    numbers = np.array(values)
    chart, curve = histogram("x", [numbers], ["x"], threshold), what_if("x", numbers, 3, threshold)
    line = line_chart("x", "x", "x", values, [Values("x", [0.5, 0.5, 0.5])], threshold)
    assert chart and curve and sum(bar.counts[0] for bar in chart.bars) == 3
    filters = describe("x", "number", pa.chunked_array([values]))
    assert sum(filters.histogram) == 3 and math.isfinite(filters.slider_low) and filters.step > 0
    for drawn in (chart, curve, line):
        assert all(LEFT <= tick.at <= LEFT + PLOT_WIDTH for tick in drawn.x_ticks)
        assert (drawn.marker is None) == (threshold is None)


def test_bars_begin_at_round_numbers() -> None:
    values = np.linspace(0.1, 0.4, 1000)
    chart = histogram("x", [values, np.array([0.2500001])], ("a", "b"), 0.25)
    assert chart
    assert chart.bars[0].label == "0.10 to 0.11"
    assert next(bar.label for bar in chart.bars if bar.counts[1]) == "0.25 to 0.26"


def test_bars_of_whole_numbers_are_at_least_one_wide() -> None:
    chart = histogram("words", [np.array([1.0, 2, 2, 5]), np.array([])], ("a", "b"), whole=True)
    assert chart and [(bar.label, bar.counts[0]) for bar in chart.bars] == [
        ("1", 1),
        ("2", 2),
        ("3", 0),
        ("4", 0),
        ("5", 1),
    ]


def test_whole_numbers_have_whole_ticks() -> None:
    for top in (1, 2, 5, 9, 400):
        chart = histogram("words", [np.array([1.0, top]), np.array([])], ("a", "b"), whole=True)
        assert chart and len(chart.x_ticks) >= 2 and all("." not in tick.label for tick in chart.x_ticks)


def test_values_beyond_the_axis_are_counted_and_mentioned() -> None:
    values = np.concatenate([np.full(1, -1e9), np.linspace(0, 1, 998), np.full(1, 1e9)])
    chart = histogram("x", [values, np.array([])], ("a", "b"), cut=0.01)
    assert chart and sum(bar.counts[0] for bar in chart.bars) == 1000
    assert chart.note.startswith("The first and last bars include ")


@given(FLOATS, FLOATS, st.sampled_from([0.0, 0.0005, 0.3]))
@example([], [2.7e17, -1.0, -1.0], 0.0005)  # bins this wide round -1 to the edge at 0
def test_charts_that_share_bins_have_the_same_axis_and_lose_no_value(
    one: list[float], other: list[float], cut: float
) -> None:
    arrays = [np.array(each, np.float64) for each in (one, other)]
    finite = [int(np.isfinite(each).sum()) for each in arrays]
    bins = Bins.shared(arrays, cut)
    if bins is None:
        assert not any(finite)
        return
    charts = [binned("x", [each], ["pairs"], bins) for each in arrays]
    assert charts[0].x_ticks == charts[1].x_ticks
    assert [bar.label for bar in charts[0].bars] == [bar.label for bar in charts[1].bars]
    assert [sum(bar.counts[0] for bar in chart.bars) for chart in charts] == finite
    for each, number in zip(arrays, finite, strict=True):
        assert bins.beyond(each) <= 2 * math.ceil(cut * number)  # for each array, no matter how large the other is


def test_values_far_beyond_the_axis_are_in_the_last_bar_and_infinities_in_no_bar() -> None:
    values = np.concatenate([np.linspace(0, 1, 3000), [3e38, math.inf, -math.inf, math.nan]])
    chart = histogram("x", [values, np.array([])], ("a", "b"), cut=0.01)
    usual = histogram("x", [values[:3000], np.array([])], ("a", "b"), cut=0.01)
    assert chart and usual and chart.bars[-1].counts[0] - usual.bars[-1].counts[0] == 1
    assert int(chart.note.split("include ")[1].split()[0]) == int(usual.note.split("include ")[1].split()[0]) + 1


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 20))
def test_ticks_are_few_and_round_and_within_the_range(low: float, span: float, most: int) -> None:
    high = low + span
    found = round_values(low, high, most)
    assert len(found) <= most + 1
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= value <= high + slack for value, _ in found)
    texts = [text for _, text in found]
    assert len(set(texts)) == len(texts)
    assert all(
        float(text.replace(",", "").replace("−", "-")) == pytest.approx(value, abs=1e-9) for value, text in found
    )


def test_labels_have_as_many_decimals_as_their_step() -> None:
    assert [label(0.3, 0.1), label(-0.25, 0.05), label(12_000, 2_000), label(-0.0, 0.1)] == [
        "0.3",
        "−0.25",
        "12,000",
        "0.0",
    ]
    assert [label(1.7e18, 1e17), label(-2e-9, 5e-10), label(0.0, 1e17), label(0.0, 1e-9)] == [
        "1.7e18",
        "−2.0e−09",
        "0",
        "0",
    ]
    assert [short_count(n) for n in (0, 950, 1_000, 1_250, 35_000_000, 2e9)] == ["0", "950", "1k", "1.2k", "35M", "2B"]


@given(values=st.lists(st.floats(-1, 1, width=32) | st.floats(width=32), min_size=1, max_size=60))
def test_the_what_if_curve_counts_what_a_threshold_would_keep(values: list[float]) -> None:
    array = np.array(values, np.float32)
    curve = what_if("x", array, 10 * len(values), None)
    if curve is None:
        assert not np.isfinite(array).any()
        return
    for point in curve.points:
        with np.errstate(over="ignore"):
            threshold = np.float32(point.threshold.replace("−", "-").replace(",", ""))
        kept = int((array >= threshold).sum())  # the same comparison as in `select`
        assert point.share == pytest.approx(kept / len(values))
        assert point.count == 10 * kept
    heights = [float(each.split(",")[1]) for each in curve.path.split()]
    assert heights == sorted(heights)  # y grows downward, and a higher threshold never keeps more rows


def test_a_score_that_equals_the_threshold_is_kept() -> None:
    curve = what_if("x", np.array([0.7, 0.7, 0.1], np.float32), 3, 0.7)
    assert curve and next(point.count for point in curve.points if float(point.threshold) == 0.7) == 2


def test_a_double_just_below_the_threshold_is_not_kept() -> None:
    curve = what_if("x", np.array([0.7, 0.7 - 1e-12, 0.1]), 3, 0.7)
    assert curve and next(point.count for point in curve.points if float(point.threshold) == 0.7) == 1
