"""Compares two subsets of a dataset, or two datasets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import funnel
from pairmill.pipeline.report.axis import Numbers
from pairmill.pipeline.report.bins import Bins
from pairmill.pipeline.report.charts import BarChart, binned
from pairmill.pipeline.report.grids import Grid, random_refs
from pairmill.pipeline.report.page import Comparison, Side
from pairmill.pipeline.report.sample import sample_note
from pairmill.pipeline.report.source import Source
from pairmill.pipeline.report.summary import Group, Summary
from pairmill.pipeline.select.subset_diff import compare

ROWS_PER_SIDE = 12
_CUT = 0.0005
"""The share of the values of each side that can be beyond each end of the axis."""


@dataclass(frozen=True)
class _Scored:
    """The values that the chart of one side shows."""

    score: str | None
    """The column; None if there is no chart."""
    values: Sequence[Numbers]
    """One array per series."""
    series: Sequence[str]

    @property
    def together(self) -> Numbers:
        """The values of all series."""
        return np.concatenate([np.empty(0, np.float64), *(np.asarray(each, np.float64) for each in self.values)])


def compare_subsets(source: Source, summary: Summary, score: str | None) -> Comparison:
    """Compare two subsets of one dataset: exact counts and reasons, histograms of a score, and random rows that are
    only in one subset or in both."""
    one, other = source.subset, source.other
    assert one is not None and other is not None
    found = compare(source.snapshot.store, one.name, other.name)
    grids = [
        _grid(f"Only in {one.name}", summary, Group("only", one.name), sum(found.only_one.values())),
        _grid(f"Only in {other.name}", summary, Group("only", other.name), sum(found.only_other.values())),
        _grid("In both", summary, Group("both"), found.both),
    ]
    values = summary.number(score) if score else np.empty(0, np.float32)
    masks = [source.in_subset(each, summary.refs) for each in (one, other)]
    charts = _charts(*(_Scored(score, [values[mask]] if score else [], ["pairs"]) for mask in masks))
    sampled = sample_note(summary.rows, source.totals)
    sides = [
        Side(each.name, funnel.of_subset(each), chart, sampled)
        for each, chart in zip((one, other), charts, strict=True)
    ]
    title = f"{one.name} and {other.name}"
    return Comparison(title, sides, list(found.lines()), [grid for grid in grids if grid.refs])


def _grid(title: str, summary: Summary, group: Group, rows: int) -> Grid:
    return Grid(title, counted(rows, "row"), random_refs(summary, group, ROWS_PER_SIDE))


@dataclass(frozen=True)
class Summarized:
    """A dataset and the summary of its rows."""

    source: Source
    summary: Summary
    score: str | None
    """The score to show."""
    series: Sequence[str] = ("kept", "dropped")
    """Names of the chosen pairs and of the other pairs."""

    def scored(self) -> _Scored:
        """The values for the chart of this side of a comparison."""
        if self.score is None:
            return _Scored(None, [], self.series)
        values, chosen = self.summary.number(self.score), self.summary.is_chosen()
        return _Scored(self.score, [values[chosen], values[~chosen]], self.series)

    def side(self, chart: BarChart | None) -> Side:
        """This side of a comparison."""
        name, sampled = self.source.snapshot.store.root, sample_note(self.summary.rows, self.source.totals)
        return Side(name, funnel.of_dataset(self.source.totals), chart, sampled if chart else "")


def compare_datasets(one: Summarized, other: Store, max_rows: int) -> Comparison:
    """Compare two output folders: their funnels, and histograms of a similarity (the same column if both have it)."""
    theirs = Source.of(Snapshot.of(other), max_rows)
    similarities = [name for name in theirs.scores.shown if name.startswith("similarity")]
    score = one.score if one.score in similarities else next(iter(similarities), None)
    two = Summarized(theirs, theirs.summary(), score)
    charts = _charts(one.scored(), two.scored())
    sides = [each.side(chart) for each, chart in zip((one, two), charts, strict=True)]
    return Comparison(" and ".join(side.name for side in sides), sides, [], [])


def _charts(one: _Scored, other: _Scored) -> list[BarChart | None]:
    """The histograms of both sides. If they show the same score, they have the same bins, so that their shapes are easy
    to compare; each vertical axis fits its own counts."""
    if one.score == other.score:
        all_bins = [Bins.shared([each.together for each in (one, other)], _CUT)] * 2
    else:
        all_bins = [Bins.of(each.values, cut=_CUT) if each.values else None for each in (one, other)]
    return [
        None if bins is None or each.score is None else binned(each.score, each.values, each.series, bins)
        for each, bins in zip((one, other), all_bins, strict=True)
    ]
