"""Compares two subsets of a dataset, or two datasets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import funnel
from pairmill.pipeline.report.charts import histogram
from pairmill.pipeline.report.grids import Grid, random_refs
from pairmill.pipeline.report.page import Comparison, Side
from pairmill.pipeline.report.sample import sample_note
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


@dataclass(frozen=True)
class Summarized:
    """A dataset whose rows were read."""

    source: Source
    summary: Summary
    score: str | None
    """The score to show."""
    series: Sequence[str] = ("kept", "dropped")
    """Names of the chosen pairs and of the others."""

    def side(self) -> Side:
        """The dataset's half of a comparison."""
        name, rows = self.source.snapshot.store.root, self.summary.rows
        funnel_of_it, sampled = funnel.of_dataset(self.source.totals), sample_note(rows, self.source.totals)
        if self.score is None:
            return Side(name, funnel_of_it, None)
        values, chosen = self.summary.number(self.score).astype(np.float64), self.summary.is_chosen()
        chart = histogram(self.score, [values[chosen], values[~chosen]], self.series, cut=0.0005)
        return Side(name, funnel_of_it, chart, sampled)


def compare_datasets(one: Summarized, other: Store, max_rows: int) -> Comparison:
    """Two output folders: their funnels, and histograms of a similarity: the same, if both have it."""
    theirs = Source.of(Snapshot.of(other), max_rows)
    similarities = [name for name in theirs.scores.shown if name.startswith("similarity")]
    score = one.score if one.score in similarities else next(iter(similarities), None)
    sides = [one.side(), Summarized(theirs, theirs.summary(), score).side()]
    return Comparison(" and ".join(side.name for side in sides), sides, [], [])
