"""Chooses the rows whose pictures a report shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.report.axis import four_digits
from pairmill.pipeline.report.summary import Bools, Floats, Group, Ref, Summary

EXTREMES, RANDOM, PER_REASON, PER_STEP = 16, 24, 6, 12
"""Maximum number of rows in each kind of grid."""


@dataclass(frozen=True)
class Grid:
    """Rows that are shown together."""

    title: str
    about: str
    refs: Sequence[Ref]


def by_score(summary: Summary, score: str | None, threshold: float | None, only_chosen: bool) -> Iterator[Grid]:
    """The best pairs, the worst, those around the threshold, and a random sample.

    `only_chosen`: whether the best and the worst are picked only from the chosen pairs, as for a subset.
    """
    if score is not None:
        scores = summary.number(score)
        scored = ~np.isnan(scores)
        ranked = scored & summary.is_chosen() if only_chosen else scored
        picker = _Picker(scores, summary.pair_refs())
        yield Grid("Best", f"The highest {score}.", picker.pick(ranked, EXTREMES, highest=True))
        if threshold is not None:
            # as in rules/similarity.py
            above = scored & (scores >= np.float32(threshold))
            half = EXTREMES // 2
            refs = [*picker.pick(above, half, highest=False)[::-1], *picker.pick(scored & ~above, half, highest=True)]
            yield Grid("Around the threshold", f"From just above {four_digits(threshold)} to just below it.", refs)
        else:
            yield Grid("From high to low", "Evenly spaced ranks: where would you draw the line?", picker.steps(ranked))
        yield Grid("Worst", f"The lowest {score}.", picker.pick(ranked, EXTREMES, highest=False))
    yield Grid("A random sample", _random_about(only_chosen), random_refs(summary, Group("chosen"), RANDOM))


def random_refs(summary: Summary, group: Group, size: int) -> list[Ref]:
    """Random rows of a group."""
    return [ref for _, ref in summary.groups.get(group, [])[:size]]


def _random_about(only_chosen: bool) -> str:
    return "Pairs of the subset, chosen by a hash." if only_chosen else "Kept pairs, chosen by a hash."


class _Picker:
    """Picks pairs by rank. Of pairs with equal scores, the first wins."""

    def __init__(self, scores: Floats, refs: npt.NDArray[np.int64]) -> None:
        self._scores, self._refs = scores, refs

    def pick(self, among: Bools, size: int, highest: bool) -> list[Ref]:
        """The `size` pairs with the highest or lowest scores, most extreme first."""
        rows = np.flatnonzero(among)
        keys = -self._scores[rows] if highest else self._scores[rows]
        if len(rows) > size:  # keep all ties at the border, so that the first of them win
            border = np.partition(keys, size - 1)[size - 1]
            rows, keys = rows[keys <= border], keys[keys <= border]
        return self._as_refs(rows[np.argsort(keys, kind="stable")][:size])

    def steps(self, among: Bools) -> list[Ref]:
        """Up to EXTREMES pairs at even steps of rank, the highest first."""
        rows = np.flatnonzero(among)
        ordered = rows[np.argsort(-self._scores[rows], kind="stable")]
        count = min(len(ordered), EXTREMES)
        return self._as_refs(
            ordered[np.unique(np.linspace(0, len(ordered) - 1, count).astype(int))] if count else ordered
        )

    def _as_refs(self, rows: npt.NDArray[np.int64]) -> list[Ref]:
        return [Ref("pairs", position, row) for position, row in self._refs[rows].tolist()]
