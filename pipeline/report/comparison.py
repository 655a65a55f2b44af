"""Compares two subsets of a dataset, or two datasets."""

from collections.abc import Sequence

import numpy as np

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import funnel
from pairmill.pipeline.report.charts import BarChart, histogram
from pairmill.pipeline.report.grids import Grid, random_refs
from pairmill.pipeline.report.page import Comparison, Side
from pairmill.pipeline.report.source import Source
from pairmill.pipeline.report.summary import Group, Summary
from pairmill.pipeline.select.subset_diff import compare

ROWS_PER_SIDE = 12


def compare_subsets(source: Source, summary: Summary) -> Comparison:
    """Two subsets of one dataset: exact counts and reasons, and random rows of each difference."""
    one, other = source.subset, source.other
    assert one is not None and other is not None
    found = compare(source.snapshot.store, one.name, other.name)
    grids = [
        _grid(f"Only in {one.name}", summary, Group("only", one.name), sum(found.only_one.values())),
        _grid(f"Only in {other.name}", summary, Group("only", other.name), sum(found.only_other.values())),
        _grid("In both", summary, Group("both"), found.both),
    ]
    sides = [
        Side(one.name, funnel.of_subset(one), None),
        Side(other.name, funnel.of_subset(other), None),
    ]
    title = f"{one.name} and {other.name}"
    return Comparison(title, sides, list(found.lines()), [grid for grid in grids if grid.refs])


def _grid(title: str, summary: Summary, group: Group, rows: int) -> Grid:
    return Grid(title, counted(rows, "row"), random_refs(summary, group, ROWS_PER_SIDE))


def compare_datasets(source: Source, summary: Summary, other: Store, score: str | None, max_rows: int) -> Comparison:
    """Two output folders: their funnels, and histograms of the score that both have."""
    other.check_access()
    theirs = Source.of(Snapshot.of(other), max_rows)
    their_score = score if score in theirs.scores.shown else next(iter(theirs.scores.shown), None)
    sides = [
        Side(source.snapshot.store.root, funnel.of_dataset(source.totals), _chart(summary, score)),
        Side(other.root, funnel.of_dataset(theirs.totals), _chart(theirs.summary(), their_score)),
    ]
    return Comparison(f"{source.snapshot.store.root} and {other.root}", sides, [], [])


def _chart(summary: Summary, score: str | None) -> BarChart | None:
    if score is None:
        return None
    values, chosen = summary.number(score).astype(np.float64), summary.is_chosen()
    series: Sequence[str] = ("kept", "dropped")
    return histogram(score, [values[chosen], values[~chosen]], series, cut=0.0005)
